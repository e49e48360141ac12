"""Guidance: how several conditions become one denoiser; one file each, found by its name (`cfg`)."""
