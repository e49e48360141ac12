"""One training objective a file, found by its name."""
