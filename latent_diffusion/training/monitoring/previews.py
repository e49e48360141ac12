"""Sample pictures during a run, drawn by all processes; one sheet of all checkpoints; at the end the copy test."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL.Image import Image

from latent_diffusion.checkpoint.files.atomic import replacing
from latent_diffusion.config import RunConfig
from latent_diffusion.training.monitoring.contact_sheet import contact_sheet
from latent_diffusion.training.monitoring.log import RunLog
from latent_diffusion.training.sharing import interleaved, shared
from latent_diffusion.training.state.saving import averaged

if TYPE_CHECKING:
    from latent_diffusion.training.trainer import Trainer

__all__ = ["CONTACT", "Previews"]

logger = logging.getLogger(__name__)

CONTACT = "contact.png"
"""The sheet of all checkpoints, in `samples/`."""


class Previews:
    """Draws when it is due (all processes' observer); the first process, which has the log, writes."""

    def __init__(self, run: RunConfig, folder: Path, log: RunLog | None) -> None:
        self._run, self._samples, self._log = run, folder / "samples", log

    def after_backward(self, player: str, step: int) -> None:
        """Nothing to draw between backward and update."""

    def after_update(self, trainer: "Trainer", figures: Mapping[str, float]) -> None:
        """Draw after every `sample.every` updates and after the last."""
        sample, done = self._run.sample, trainer.done
        if sample is None or trainer.stopped or (done % sample.every and done != trainer.last):
            return
        try:
            with averaged(trainer), trainer.objective.assembled(), torch.no_grad():
                parts = shared(trainer.accelerator, trainer.objective.draw)
            if self._log is not None:
                self._write(trainer, interleaved(parts), self._log)
        except Exception as fault:  # pictures are for people: whatever is wrong with them, training is not
            logger.warning("no sample pictures after step %d: %s: %s", done, type(fault).__name__, fault)

    def _write(self, trainer: "Trainer", pictures: list[Image], log: RunLog) -> None:
        if not pictures:
            return
        log.pictures(trainer.done, trainer.objective.sheets(pictures))
        every = contact_sheet(self._samples)
        if every is not None:
            with replacing(self._samples / CONTACT) as temporary:
                every.save(temporary, format="PNG")
        if trainer.done == trainer.last and (copies := trainer.objective.copies(pictures)) is not None:
            logger.info("%s", copies.line())
            log.held_out(trainer.done, copies.figures())
