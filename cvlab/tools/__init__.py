"""For instructors and maintainers: the command line and what it does. Begin at `cli`."""
