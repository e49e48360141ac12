"""The trainer and its objectives."""
