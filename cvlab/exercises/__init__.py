"""Exercises that answer back. Begin at `judge`."""
