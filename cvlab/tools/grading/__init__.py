"""A class of two hundred: what they hand in is marked, and can hurt nobody. Begin at `grade`."""
