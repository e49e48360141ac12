"""The plan of a run: how pictures, passes, batches and updates belong together, and when the run will end."""

import logging
import math
import resource
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from latent_diffusion.config import RunConfig
from latent_diffusion.errors import ConfigError
from latent_diffusion.training.objective import Objective
from latent_diffusion.training.state.training_state import TrainingState

if TYPE_CHECKING:
    from latent_diffusion.training.trainer import Trainer

__all__ = ["EndTime", "measured", "planned_line", "with_steps", "with_steps_of"]

logger = logging.getLogger(__name__)

TIMED = 5
"""Updates after the first, which is slower, over which the speed is measured."""


def with_steps(run: RunConfig, objective: Objective) -> RunConfig:
    """Return the run with its number of updates, passes rounded up to whole updates; the objective has it too.

    Raises:
        ConfigError: the objective's data have no end, or the updates leave nothing for the learning rate's curve.
    """
    if run.passes is not None:
        samples = objective.pass_samples()
        if samples is None:
            raise ConfigError(f"passes: the data of objective {run.objective['name']!r} have no end; use steps")
        run = run.with_steps(math.ceil(run.passes * samples / run.batch_size))
    objective.run = run
    return run


def with_steps_of(run: RunConfig, state: TrainingState | None) -> RunConfig:
    """Return the run with the number of updates that a checkpoint of the same passes has, before the data are read."""
    if state is None or run.passes is None or state.values["config"].get("passes") != run.passes:
        return run
    return run.with_steps(int(state.values["config"]["steps"]))


def planned_line(run: RunConfig, samples: int | None) -> str:
    """Return the plan in one line; `samples` is the number of one pass."""
    total = run.updates * run.batch_size
    updates = f"{run.updates:,} update{'s' if run.updates > 1 else ''}"
    if samples is None:
        return f"plan: {updates} of {run.batch_size} = {total:,} samples"
    return (
        f"plan: {samples:,} pictures / batch_size {run.batch_size} = {samples / run.batch_size:.4g} updates a pass; "
        f"{updates} = {total:,} samples = {total / samples:.4g} passes"
    )


class EndTime:
    """Prints, once, when the run is expected to end (the first process's observer)."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None
        self._printed = False

    def after_backward(self, player: str, step: int) -> None:
        """Nothing to measure between backward and update."""

    def after_update(self, trainer: "Trainer", figures: Mapping[str, float]) -> None:
        """Time the updates after the first."""
        if self._printed:
            return
        now, done, run = time.perf_counter(), trainer.done, trainer.run
        if self._first is None:
            self._first = (done, now)
        elif done - self._first[0] >= TIMED:
            self._printed = True
            seconds = (now - self._first[1]) / (done - self._first[0])
            logger.info("%s", end_line(seconds, trainer.last - done, run.batch_size))


def end_line(seconds: float, left: int, batch_size: int) -> str:
    """Return when `left` updates of `seconds` each will have been made."""
    needed = seconds * left
    minutes, rest = divmod(round(needed), 60)
    hours, minutes = divmod(minutes, 60)
    end = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + needed))
    return (
        f"expected end: {end}, in {hours}:{minutes:02d}:{rest:02d} ({seconds:.3g} s an update, "
        f"{batch_size / max(seconds, 1e-9):.3g} pictures/s), sample pictures and checkpoints not counted"
    )


def measured(trainer: "Trainer") -> list[str]:
    """Make a few updates that nothing is written of; return what is trained, the expected end and the peak memory."""
    run, seconds = trainer.run, 0.0
    numbers = sum(p.numel() for player in trainer.trainable.values() for p in player.values())
    for updates in (1, 1 + TIMED):  # the first is slower
        done, start = trainer.done, time.perf_counter()
        trainer.last = min(run.updates, updates)
        trainer.fit()
        if trainer.done > done:
            seconds = (time.perf_counter() - start) / (trainer.done - done)
    return [
        f"trained: {numbers:,} numbers",
        end_line(seconds, run.updates, run.batch_size),
        f"peak memory: {_peak_bytes(trainer.accelerator.device) / 2**30:.2f} GiB",
    ]


def _peak_bytes(device: torch.device) -> int:
    """Return the most memory that this process has held: on a GPU the allocator's, else the resident set's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
