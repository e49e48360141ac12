"""The player of progressive distillation: one DDIM step of a student does what two of its teacher's do.

    x' = step of the teacher from t to t',   x'' = step of the teacher from t' to t''
    target = the x0 with which one step from t arrives at x'':  (x'' - r x) / (alpha'' - r alpha),  r = sigma'' / sigma
    loss = max(alpha^2 / sigma^2, 1) |x0(x, t; student) - target|^2

The student's N times are every second one of the teacher's 2 N.
Reference: Salimans & Ho 2022, arXiv:2202.00512, algorithm 2 and section 4 (the weight: "truncated SNR").
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.data.batches.loader import Batch
from latent_diffusion.diffusion.consistency import between
from latent_diffusion.diffusion.denoiser import at_times
from latent_diffusion.diffusion.forward import add_noise
from latent_diffusion.diffusion.level import NoiseSchedule
from latent_diffusion.diffusion.loss import LARGEST_SNR
from latent_diffusion.diffusion.spacing import times
from latent_diffusion.models.unet import UNet
from latent_diffusion.training.losses.students.distillation import Distillation

__all__ = ["Halving", "Progressive"]


@dataclass(frozen=True)
class Halving:
    """The times of a student of N steps and those of its teacher.

    Attributes:
        schedule: the noise law.
        steps: N, of the student.
    """

    schedule: NoiseSchedule
    steps: int

    def times(self) -> np.ndarray:
        """Return t, t' and t'' of each step of the student, noisiest first, int64 (N, 3); the last t'' is -1, clean."""
        falling = [*times("trailing", 2 * self.steps, self.schedule.num_train_timesteps), -1]
        return np.array([falling[place : place + 3] for place in range(0, 2 * self.steps, 2)], np.int64)

    def target(self, x: Tensor, after: Tensor, t: Tensor, last: Tensor) -> Tensor:
        """Return the x0 with which one step of DDIM goes from x at times t (B,) to `after` at times `last` (B,)."""
        (alpha, sigma, _), (alpha_after, sigma_after, _) = (at_times(self.schedule, time, x) for time in (t, last))
        ratio = sigma_after / sigma
        return (after - ratio * x) / (alpha_after - ratio * alpha)

    def step(self, x: Tensor, x0: Tensor, t: Tensor, after: Tensor) -> Tensor:
        """Carry x (B, C, h, w) from times t (B,) to times `after` (B,) with the estimate x0."""
        return between(self.schedule, x, x0, t, after)

    def weight(self, t: Tensor) -> Tensor:
        """Return max(SNR, 1) at times t (B,), float64."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        return ((alpha / sigma) ** 2).clamp(min=1.0, max=LARGEST_SNR)


class Progressive(Distillation):
    """A student of half its teacher's steps."""

    def __init__(
        self,
        parts: Components,
        trained: Mapping[str, nn.Module],
        teacher: UNet,
        settings: Any,  # `DistillationSettings` with `steps`: those of the objective `progressive`
        guidance_scale: float,
        seed: int,
        batch_size: int,
    ) -> None:
        """Take what `Distillation` takes; `settings.steps` are the student's."""
        super().__init__(parts, trained, teacher, settings, guidance_scale, seed, batch_size)
        self.halving = Halving(parts.schedule, settings.steps)

    def places(self, samples: Sequence[int]) -> Tensor:
        """Return t, t' and t'' of each sample number, int64 (B, 3), all steps of the student alike."""
        grid = self.halving.times()
        return torch.from_numpy(grid[[min(int(share * len(grid)), len(grid) - 1) for share in self.shares(samples)]])

    def _losses(self, batch: Batch) -> Tensor:
        """Return the losses (B,) of pictures whose captions have equally many tokens."""
        x0, cond = self.latents(batch), self.condition(batch)
        t, middle, last = self.places(batch.sample).to(x0.device).unbind(1)
        with torch.no_grad():
            alpha, sigma, _ = at_times(self.halving.schedule, t, x0)
            x = add_noise(x0, self.noise(batch, x0), alpha, sigma)
            teach = self.teaching(batch, cond)
            half = self.halving.step(x, teach(x, t), t, middle)
            after = self.halving.step(half, teach(half, middle), middle, last)
            target = self.halving.target(x, after, t, last)
        torch.clear_autocast_cache()  # torch 2.10 would take weights from it that were rounded without gradients
        error = self.function.x0(self.network(cond), x, t) - target
        losses = error.square().flatten(1).mean(1) * self.halving.weight(t).to(error)
        return losses if batch.weights is None else losses * batch.weights.to(losses)
