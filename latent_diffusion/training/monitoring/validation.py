"""Figures of held-out pictures during a run: the best weights are kept, and a run that no longer gets better ends.

Pictures, times and noise are the same in every evaluation, so two figures differ by the weights alone.
"""

import logging
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from latent_diffusion.config import RunConfig
from latent_diffusion.training.monitoring.log import RunLog
from latent_diffusion.training.sharing import shared
from latent_diffusion.training.state.saving import averaged
from latent_diffusion.training.state.training_state import TrainingState

if TYPE_CHECKING:
    from latent_diffusion.training.trainer import Trainer

__all__ = ["Validation", "is_last"]

logger = logging.getLogger(__name__)


def patience_is_over(run: RunConfig, waited: int) -> bool:
    """Return whether there were as many evaluations without a better figure as the run allows."""
    patience = run.evaluate.patience if run.evaluate is not None else None
    return patience is not None and waited >= patience


def is_last(state: TrainingState, run: RunConfig) -> bool:
    """Return whether nothing follows a checkpoint: all updates are made, or patience is over."""
    waited = (state.values.get("validation") or {}).get("waited", 0)
    return (run.steps is not None and state.step >= run.steps) or patience_is_over(run, waited)


class Validation:
    """Measures when it is due, keeps the best and counts evaluations without a better one (all processes' observer).

    Attributes:
        best: the best figure so far; None before the first.
        best_step: after how many updates it was measured.
        waited: evaluations since then.
    """

    def __init__(self, run: RunConfig, keep: "Callable[[Trainer], None]", log: RunLog | None) -> None:
        """Take the run, what writes the best weights, and the first process's log."""
        self._run, self._keep, self._log = run, keep, log
        self._every = run.evaluate.every if run.evaluate else run.sample.every if run.sample else None
        self.best: float | None = None
        self.best_step, self.waited = 0, 0

    def after_backward(self, player: str, step: int) -> None:
        """Nothing to measure between backward and update."""

    def after_update(self, trainer: "Trainer", figures: Mapping[str, float]) -> None:
        """Measure, keep the weights if they are the best, and end the run when patience is over."""
        done = trainer.done
        if self._every is None or trainer.objective.held_out is None or trainer.stopped:
            return
        if done % self._every and done != trainer.last:
            return
        try:
            found = self._measured(trainer)
        except Exception as fault:  # figures are for people: whatever is wrong with them, training is not
            logger.warning("no figures of held-out pictures after step %d: %s: %s", done, type(fault).__name__, fault)
            return
        if self._log is not None and found:
            self._log.held_out(done, found)
        if self._run.evaluate is not None and found:
            self._judge(trainer, found[trainer.objective.best_by])

    def _measured(self, trainer: "Trainer") -> dict[str, float]:
        """Return the mean of each figure over all held-out pictures, the same on every process."""
        with averaged(trainer), trainer.objective.assembled(), torch.no_grad():
            parts = shared(trainer.accelerator, trainer.objective.evaluate)
        names = dict.fromkeys(name for part in parts for name in part)
        joined = {name: torch.cat([part[name].double().cpu() for part in parts if name in part]) for name in names}
        return {name: float(values.mean()) for name, values in joined.items()}

    def _judge(self, trainer: "Trainer", value: float) -> None:
        objective, done = trainer.objective, trainer.done
        better = self.best is None or (value < self.best if objective.best_is_lowest else value > self.best)
        if math.isfinite(value) and better:
            self.best, self.best_step, self.waited = value, done, 0
            self._keep(trainer)
            return
        self.waited += 1
        if patience_is_over(self._run, self.waited) and done < trainer.last:
            trainer.last = done
            logger.info(
                "%s did not get better than %.4g (step %d) in %d evaluations: the run ends after step %d of %d",
                *(objective.best_by, self.best or math.nan, self.best_step, self.waited, done, self._run.updates),
            )

    def state(self) -> dict[str, Any]:
        """Return the figures that decide, for a checkpoint."""
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited}

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Go on from a checkpoint; older ones have no state."""
        if state is None:
            return
        self.best, self.best_step, self.waited = state["best"], int(state["best_step"]), int(state["waited"])
