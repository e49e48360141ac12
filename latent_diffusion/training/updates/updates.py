"""How the gradients of a player become an update: all at once after the backward pass, or each as soon as it is there.

The second, in the backward pass, holds no more than a few gradients at a time; its weights are those of the first, bit
for bit, as long as no gradient is clipped by the norm of all.
Reference: Lv et al. 2023, arXiv:2306.09782 (fused update).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from latent_diffusion.config import RunConfig
from latent_diffusion.errors import ConfigError
from latent_diffusion.training.fsdp import whole
from latent_diffusion.training.optimizer import Joined, gradient_norm, optimizer_settings, scale_gradients

__all__ = ["Updates", "UpdatesInBackward", "check_update_in_backward"]


class Updates:
    """The updates of a player after all of its gradients are there."""

    def __init__(self, optimizer: Joined, trainable: Mapping[str, Tensor], clip_norm: float | None) -> None:
        """Take the optimizer of the weights, these by name, and the largest norm of all gradients."""
        self.optimizer, self.trainable, self.clip_norm = optimizer, trainable, clip_norm

    def begin(self, rate: float, step: int) -> None:
        """Set the learning rate of update `step` (from 0), before the backward pass."""
        self.step = step
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]

    def norm(self) -> Tensor:
        """Return the L2 norm over all gradients, () on the device; NaN or infinite when any of them is."""
        return gradient_norm(list(self.trainable.values()))

    def largest(self) -> dict[str, Tensor]:
        """Return the largest absolute value of each gradient, by the weight's name."""
        there = {name: p.grad for name, p in self.trainable.items() if p.grad is not None}
        norms = torch._foreach_norm(list(there.values()), float("inf")) if there else []
        return {name: whole(norm) for name, norm in zip(there, norms, strict=True)}

    def finish(self, norm: float) -> None:
        """Clip the gradients, whose norm is `norm`, update the weights and drop the gradients."""
        if self.clip_norm is not None:
            scale_gradients(list(self.trainable.values()), norm, self.clip_norm)
        self.optimizer.step(self.step)
        self.optimizer.zero_grad(set_to_none=True)


class UpdatesInBackward(Updates):
    """Each weight is updated when its gradient is there, which is dropped then."""

    def __init__(self, optimizer: Joined, trainable: Mapping[str, Tensor], clip_norm: float | None) -> None:
        """Take what `Updates` takes; the optimizer has one of its own for each weight."""
        super().__init__(optimizer, trainable, clip_norm)
        self._norms: dict[str, tuple[Tensor, Tensor]] = {}
        for name, weight in trainable.items():
            weight.register_post_accumulate_grad_hook(lambda weight, name=name: self._update(name, weight))

    def begin(self, rate: float, step: int) -> None:
        """Set the learning rate of update `step` (from 0), before the backward pass makes it."""
        super().begin(rate, step)
        self._norms.clear()

    def norm(self) -> Tensor:
        """Return the L2 norm over all gradients that there were."""
        norms = [self._norms[name][0] for name in self.trainable if name in self._norms]
        return torch.linalg.vector_norm(torch.stack([norm.float() for norm in norms]))

    def largest(self) -> dict[str, Tensor]:
        """Return the largest absolute value of each gradient that there was, by the weight's name."""
        return {name: largest for name, (_, largest) in self._norms.items()}

    def finish(self, norm: float) -> None:
        """Nothing is left to do."""

    @torch.no_grad()
    def _update(self, name: str, weight: Tensor) -> None:
        assert weight.grad is not None, "called when it is there"
        self._norms[name] = torch.linalg.vector_norm(weight.grad), weight.grad.abs().amax()
        self.optimizer.step_of(weight, self.step)
        weight.grad = None


def check_update_in_backward(run: RunConfig, processes: int) -> None:
    """Refuse settings that need all gradients at one time.

    Raises:
        ConfigError: naming the setting and the reason.
    """
    settings = optimizer_settings(run)
    refused = {
        f"clip_norm {run.clip_norm}: the norm of all gradients is known when all are there; set clip_norm=null": (
            run.clip_norm is not None
        ),
        f"accumulation {run.accumulation}: an update needs the gradients of all micro-batches; use 1": (
            run.accumulation > 1
        ),
        f"{processes} processes: they add up their gradients before an update; launch one": processes > 1,
        f"optimizer {run.optimizer.get('name')}: {settings.one_rate}; use another": bool(settings.one_rate),
    }
    for reason, holds in refused.items():
        if holds:
            raise ConfigError(f"memory.update_in_backward does not go with {reason}")
