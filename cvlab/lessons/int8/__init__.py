"""06: a quarter of the bytes, and how they cost no accuracy."""
