"""The run folder: checkpoints that continue bit for bit, audit, launch."""
