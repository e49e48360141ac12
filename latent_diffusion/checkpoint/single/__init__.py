"""Single-file checkpoints: detection, tensor names, layout."""
