"""Links that lead nowhere, as a download cache has after a clean-up: named with what they point at."""

import os
from pathlib import Path

from latent_diffusion.errors import CheckpointError

__all__ = ["refuse_broken_link"]


def refuse_broken_link(path: Path) -> None:
    """Check that a path is no link to something that is not there.

    Raises:
        CheckpointError: naming link and target.
    """
    if os.path.islink(path) and not os.path.exists(path):
        raise CheckpointError(f"{path}: a link to {os.readlink(path)!r}, which leads nowhere; fetch the model again")
