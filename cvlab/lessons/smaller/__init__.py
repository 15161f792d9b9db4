"""08: fewer weights, fewer channels, a teacher, fewer bytes."""
