"""Trained adapters and learned words, and their files."""
