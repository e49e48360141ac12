"""A warning where losses jump and stay high: the samples of those updates are named, the training goes on."""

import logging
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latent_diffusion.training.trainer import Trainer

__all__ = ["SpikeWatch"]

logger = logging.getLogger(__name__)

FACTOR = 10  # times the median loss
IN_A_ROW = 3  # updates
WINDOW, FEWEST = 100, 10  # updates over which the median is taken, and from how many on


class SpikeWatch:
    """Compares each loss with the median of the updates before it (the first process's observer)."""

    def __init__(self) -> None:
        self._usual: dict[str, deque[float]] = {}
        self._high: dict[str, int] = {}  # how many updates in a row were above

    def after_backward(self, player: str, step: int) -> None:
        """Nothing to compare between backward and update."""

    def after_update(self, trainer: "Trainer", figures: Mapping[str, float]) -> None:
        """Take the losses of the update just made."""
        for name in (name for name in figures if name.endswith("/loss")):
            usual = self._usual.setdefault(name, deque(maxlen=WINDOW))
            if len(usual) < FEWEST or figures[name] <= FACTOR * abs(median(usual)):
                usual.append(figures[name])
                self._high[name] = 0
                continue
            self._high[name] += 1
            if self._high[name] == IN_A_ROW:
                done, batch = trainer.done, trainer.run.batch_size
                logger.warning(
                    "%s was more than %d times its median %.3g in updates %d to %d, samples %d .. %d of the run; look "
                    "at those pictures, or lower optimizer.learning_rate",
                    *(name, FACTOR, median(usual), done - IN_A_ROW + 1, done),
                    *((done - IN_A_ROW) * batch, done * batch - 1),
                )
