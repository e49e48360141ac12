"""The mathematics of diffusion: levels, forward process, posterior, predictions, losses, noise. No network in it."""
