"""Samplers: one algorithm a file, found by its name (`ddpm`, `ddim`, `dpmpp_2m`)."""
