"""The folder of a result: the trained parts with their averaged weights, and how they were made."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latent_diffusion.checkpoint.files.atomic import TEMPORARY, publish
from latent_diffusion.checkpoint.files.json_file import write_json
from latent_diffusion.training.saving import averaged, shareable
from latent_diffusion.training.trainer import Trainer

__all__ = ["write_result"]


def write_result(trainer: Trainer, target: Path, described: Mapping[str, Any]) -> None:
    """Write the trained parts, as they are for use, to the folder `target` in one rename."""
    temporary = target.with_name(f"{TEMPORARY}{target.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    with averaged(trainer):
        trainer.objective.export(temporary, averaged=trainer.ema is not None)
    write_json(temporary / "training.json", shareable(trainer, described))
    publish(temporary, target)
