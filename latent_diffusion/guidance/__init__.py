"""One guidance a file, found by its name."""
