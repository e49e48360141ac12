"""Noise schedules: one file each, found by its name (`linear`, `scaled_linear`, `cosine`)."""
