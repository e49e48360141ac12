"""What can be measured: one file a case, found by its name ("unet-step" is `unet_step.py`)."""
