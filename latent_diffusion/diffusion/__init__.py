"""The mathematics of diffusion; no network layers here."""
