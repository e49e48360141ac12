"""Exponential moving average of weights: what is saved for use, sampled from and exported.

    average <- average + (1 - d) (weights - average),   d = min(decay, (1 + n) / (warmup + n)) at update n.

Reference: Polyak & Juditsky 1992; the warm-up is TensorFlow's ExponentialMovingAverage(num_updates).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from latent_diffusion.config import EmaConfig
from latent_diffusion.training.fsdp import fill

__all__ = ["MovingAverage"]


class MovingAverage:
    """Averages of the trainable parameters of some modules; buffers and frozen parameters need none."""

    def __init__(self, modules: Mapping[str, nn.Module], config: EmaConfig):
        self._config = config
        self._live: dict[str, Tensor] = {
            f"{part}.{name}": parameter
            for part, module in modules.items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        self._average = {name: parameter.detach().clone() for name, parameter in self._live.items()}

    def decay(self, step: int) -> float:
        """Return the decay of update `step` (from 0)."""
        return min(self._config.decay, (1 + step) / (self._config.warmup + step))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the averages towards the weights as they are after update `step`."""
        live = list(self._live.values())
        torch._foreach_lerp_(list(self._average.values()), live, 1 - self.decay(step))

    def of(self, module: nn.Module) -> dict[str, Tensor]:
        """Return the averages of the parameters that `module` shares with the averaged parts, by its own names."""
        averages = {id(live): self._average[name] for name, live in self._live.items()}
        return {name: averages[id(p)] for name, p in module.named_parameters() if id(p) in averages}

    def tensors(self) -> dict[str, Tensor]:
        """Return the averages by `<part>.<parameter>`; the tensors themselves, not copies."""
        return self._average

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the averages; the names are those of `tensors()`, checked by the reader of the checkpoint."""
        for name, average in self._average.items():
            fill(average, tensors[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the modules hold their averages inside the `with`, and exactly their own weights after it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, live in self._live.items():
            held = live.detach().clone()
            live.copy_(self._average[name])
            self._average[name].copy_(held)
