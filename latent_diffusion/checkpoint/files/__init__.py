"""File formats: safetensors, restricted pickle, JSON; atomic writing."""
