"""Trained and frozen networks of a run: which weights train, which are kept, in what format."""
