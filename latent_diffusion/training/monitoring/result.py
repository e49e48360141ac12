"""The folder of a result: the trained parts with their averaged weights, how they were made, and a model card."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latent_diffusion.checkpoint.files.atomic import TEMPORARY, publish
from latent_diffusion.checkpoint.files.json_file import write_json
from latent_diffusion.errors import CheckpointError
from latent_diffusion.training.fsdp import is_asked
from latent_diffusion.training.monitoring.model_card import write_card
from latent_diffusion.training.state.saving import averaged, shareable
from latent_diffusion.training.trainer import Trainer

__all__ = ["write_result"]


def write_result(trainer: Trainer, target: Path, described: Mapping[str, Any]) -> None:
    """Write the trained parts, as they are for use, to the folder `target` in one rename, after reading them back.

    All processes must take part, since each may hold a part of the weights; the first writes.

    Raises:
        CheckpointError: a file that is read back does not give what was trained; the files are in
            `<target>-unverified`.
    """
    first = trainer.accelerator.is_main_process
    if not (first or is_asked()):
        return
    temporary = target.with_name(f"{TEMPORARY}{target.name}")
    aside = target.with_name(f"{target.name}-unverified")
    with averaged(trainer), trainer.objective.assembled():
        if not first:
            return
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            trainer.objective.export(temporary, averaged=trainer.ema is not None)
            record = shareable(trainer, described)
            write_json(temporary / "training.json", record)
            run, samples = trainer.run, trainer.objective.pass_samples()
            write_card(temporary, run.output, run.output.name or "adapter", record, samples)
            trainer.objective.verify(temporary)
        except CheckpointError as fault:
            publish(temporary, aside)
            message = str(fault).replace(str(temporary), str(aside))
            raise CheckpointError(f"{message}; the files are kept there, and the checkpoint is intact") from fault
    publish(temporary, target)
    shutil.rmtree(aside, ignore_errors=True)
