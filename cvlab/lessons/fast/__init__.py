"""09: as good as possible in so many seconds."""
