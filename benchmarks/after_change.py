"""What all cases do whose calls change something before they draw."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from benchmarks.cases.generate import Generate
from benchmarks.plan import Ready
from latent_diffusion.training.clock import timed

__all__ = ["AfterChange"]


class AfterChange(Generate):
    """Each call changes something and draws two pictures: `split` has the seconds of the first and of the second."""

    changes = 0

    def change(self) -> None:
        """Change what the next pictures are drawn with."""
        self.changes += 1

    def _ready(
        self, draw: Callable[[int], Mapping[str, Tensor]], dtype: torch.dtype, seconds: dict[str, float]
    ) -> Ready:
        split: dict[str, float] = {}

        def picture() -> dict[str, Tensor]:
            return {name: values.cpu() for name, values in draw(self.plan.steps).items()}  # waits for the device

        before = picture()  # at the usual size: what tools are compared by

        def call() -> Mapping[str, Tensor]:
            self.change()
            for name in ("first", "second"):
                with timed(split, name):
                    picture()
            return before

        return Ready(call, dtype, seconds, split=split)
