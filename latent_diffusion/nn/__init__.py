"""Layers the networks are made of; no diffusion mathematics here."""
