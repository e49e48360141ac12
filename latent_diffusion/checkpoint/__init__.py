"""Disk to tensors and back: safetensors, diffusers folders, training state."""
