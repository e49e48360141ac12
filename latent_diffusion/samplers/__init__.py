"""One sampler a file, found by its name."""
