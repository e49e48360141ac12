"""A picture and its mask -> latents that are kept -> the repainted picture."""
