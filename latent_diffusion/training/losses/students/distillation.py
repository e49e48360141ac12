"""The player of consistency distillation: a student learns N DDIM steps of a teacher in one evaluation.

    x = alpha_t x0 + sigma_t noise                                  t one of the N times of the grid
    x' = one DDIM step of the guided teacher from t to the time t' before
    loss = Huber(f(x, t; student) - f(x', t'; target))              the target is the student's moving average

Every draw (posterior, t, noise, caption, dropout) is keyed with the sample number.
Reference: Luo et al. 2023, arXiv:2310.04378, algorithm 1; as a LoRA: Luo et al. 2023, arXiv:2311.05556.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.config import Section
from latent_diffusion.data.batches.loader import Batch
from latent_diffusion.diffusion.consistency import Consistency, guided, pseudo_huber
from latent_diffusion.diffusion.denoiser import at_times
from latent_diffusion.diffusion.forward import add_noise
from latent_diffusion.models.unet import UNet
from latent_diffusion.training.losses.denoising import Denoising, LossSettings
from latent_diffusion.training.objective import Average

__all__ = ["Distillation", "DistillationSettings"]


class DistillationSettings(Section):
    """What the student learns of its teacher."""

    teacher_steps: int = Field(default=50, ge=1)
    """DDIM steps of the teacher from noise to picture, a divisor of its number of noise levels."""
    huber: float = Field(default=1e-3, gt=0)
    """Size of error above which the loss grows linearly (pseudo-Huber)."""
    target: Literal["average", "student"] | None = None
    """Weights that make the target: the student's moving average or its own; null: the average where `ema` is set."""


class Distillation(Denoising):
    """A student, whole or as changes of its teacher's layers, that maps each point of a path to the path's end."""

    def __init__(
        self,
        parts: Components,
        trained: Mapping[str, nn.Module],
        teacher: UNet,
        settings: DistillationSettings,
        guidance_scale: float,
        seed: int,
        batch_size: int,
    ) -> None:
        """Take the model that computes, what of it is trained, and the teacher, which stays as it is.

        Args:
            parts: the student's model; not registered.
            trained: what is registered, saved and given to the optimizer, by name.
            teacher: not registered.
            settings: what is learned.
            guidance_scale: of the teacher.
            seed: of the run.
            batch_size: pictures of an update, over which the times are spread evenly.

        Raises:
            ConfigError: steps that do not divide the teacher's number of noise levels.
        """
        super().__init__(parts, trained, LossSettings(), seed, batch_size)
        self.function = Consistency(parts.schedule, parts.prediction, settings.teacher_steps)
        self.teacher, self.guidance_scale, self.huber = (teacher,), guidance_scale, settings.huber
        self.average: Average | None = None  # of the student; None: it is its own target

    def computing(self) -> tuple[nn.Module, ...]:
        """The U-Nets whose layers may take faster kernels; a LoRA's teacher shares its layers with the student."""
        (teacher,) = self.teacher
        shared = {id(p) for p in self.unet.parameters()} & {id(p) for p in teacher.parameters()}
        return (self.unet,) if shared else (self.unet, teacher)

    def times(self, samples: Sequence[int]) -> Tensor:
        """Return a time of the grid for each sample number, int64 (B,), all times alike."""
        grid = self.function.times()
        places = [min(int(share * len(grid)), len(grid) - 1) for share in self.shares(samples)]
        return torch.from_numpy(grid[places])

    def _losses(self, batch: Batch) -> Tensor:
        """Return the losses (B,) of pictures whose captions have equally many tokens."""
        x0, cond = self.latents(batch), self.condition(batch)
        t = self.times(batch.sample).to(x0.device)
        with torch.no_grad():
            alpha, sigma, _ = at_times(self.loss.schedule, t, x0)
            x = add_noise(x0, self.noise(batch, x0), alpha, sigma)
            before = self.function.back(x, self.teaching(batch, cond)(x, t), t)
            target = self.function(self._target(cond), before, t - self.function.stride)
        torch.clear_autocast_cache()  # torch 2.10 would take weights from it that were rounded without gradients
        losses = pseudo_huber(self.function(self.network(cond), x, t) - target, self.huber)
        return losses if batch.weights is None else losses * batch.weights.to(losses)

    def teaching(self, batch: Batch, cond: Conditioning) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the teacher's guided estimate of x0 (B, C, h, w) as a function of x and integer times t (B,)."""
        (teacher,) = self.teacher
        with_caption = _network(teacher, cond)
        if self.guidance_scale == 1.0:
            return lambda x, t: self.function.x0(with_caption, x, t)
        without = _network(teacher, self.condition(replace(batch, captions=("",) * len(batch))))

        def estimate(x: Tensor, t: Tensor) -> Tensor:
            empty = self.function.x0(without, x, t)
            return guided(self.function.x0(with_caption, x, t), empty, self.guidance_scale)

        return estimate

    def _target(self, cond: Conditioning) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the network that makes the target, with the captions `cond`."""
        if self.average is None:
            return self.network(cond)
        bound = Bound(self.unet)
        weights = self.average.of(bound)
        return lambda x, t: torch.func.functional_call(bound, weights, (cond, x, t))


class Bound(nn.Module):
    """A U-Net with its captions as one function, so that other weights can stand in for its own in all of it."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, cond: Conditioning, x: Tensor, t: Tensor) -> Tensor:
        """Return the output (B, C, h, w)."""
        return self.unet(x, t, self.unet.project(cond))


def _network(unet: UNet, cond: Conditioning) -> Callable[[Tensor, Tensor], Tensor]:
    projected = unet.project(cond)
    return lambda x, t: unet(x, t, projected)
