"""One noise schedule a file, found by its name."""
