"""Optimizers of training, one file each: `optimizer: {name: muon, ...}` in a run's YAML finds `muon.py`."""
