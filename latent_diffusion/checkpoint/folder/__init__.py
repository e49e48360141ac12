"""Diffusers folders: networks, schedulers, text models, tokenizers."""
