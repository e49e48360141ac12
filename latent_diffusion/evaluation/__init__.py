"""Judging what the models make."""
