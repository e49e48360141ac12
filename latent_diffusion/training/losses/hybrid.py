"""The player that learns the variance of the reverse process beside its mean.

    L = L_simple + weight L_vlb

L_simple trains the first half of the network's output as ever. L_vlb is the variational bound in bits per dimension,
whose gradient reaches the second half alone: in it the mean is held fixed.
Reference: Nichol & Dhariwal 2021, arXiv:2102.09672, section 3.1, eq. 16.
"""

import math
from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.config import Section
from latent_diffusion.diffusion.bound import level_values
from latent_diffusion.diffusion.denoiser import at_times
from latent_diffusion.diffusion.loss import Noised, mean_over
from latent_diffusion.diffusion.spacing import times as times_of
from latent_diffusion.diffusion.variance import mean_and_range
from latent_diffusion.errors import ConfigError
from latent_diffusion.training.losses.denoising import Denoising, LossSettings

__all__ = ["Hybrid", "VarianceSettings"]


class VarianceSettings(Section):
    """How the variance is learned."""

    bound_weight: float = Field(default=0.001, gt=0)
    """Weight of the variational bound, in bits per dimension, beside the loss of the mean."""
    levels: int | None = Field(default=None, ge=2)
    """Steps of the chain that is trained, at the times that DDPM visits with trailing spacing; null: all times."""


class Hybrid(Denoising):
    """A U-Net whose output is the mean and, in as many channels, what chooses the variance."""

    def __init__(
        self,
        parts: Components,
        trained: Mapping[str, nn.Module],
        settings: LossSettings,
        variance: VarianceSettings,
        seed: int,
        batch_size: int,
    ) -> None:
        """Take the model, as `Denoising` does, and how the variance is learned.

        Raises:
            ConfigError: more steps than noise levels.
        """
        total = parts.schedule.num_train_timesteps
        if variance.levels is not None and variance.levels > total:
            raise ConfigError(
                f"objective.levels: {variance.levels}, of a model with {total} noise levels; use 1 to {total}"
            )
        chain = None
        if variance.levels is not None:
            chain = sorted(int(t) for t in times_of("trailing", variance.levels, total))
        super().__init__(parts, trained, settings, seed, batch_size, chain)
        self.bound_weight = variance.bound_weight
        self.visited = torch.tensor([-1, *(range(total) if chain is None else chain)])  # -1: the clean latent

    def compared(self, x0: Tensor, noised: Noised, t: Tensor, output: Tensor, area: Tensor | None = None) -> Tensor:
        """Return the losses (B,) of outputs (B, 2 C, h, w), L_simple and the weighted bound, both over `area`."""
        mean, v = mean_and_range(output.to(noised.target.dtype))
        simple, bound = super().compared(x0, noised, t, mean, area), self.bound(x0, noised, t, mean, v, area)
        return simple + self.bound_weight * bound

    def bound(
        self, x0: Tensor, noised: Noised, t: Tensor, mean: Tensor, v: Tensor, area: Tensor | None = None
    ) -> Tensor:
        """Return an estimate of the bound, (B,) bits per dimension, less its constant; no gradient reaches `mean`.

        The dimensions are those of `area`, as in `DiffusionLoss.compared`.
        """
        schedule = self.loss.schedule
        alpha, sigma, earlier = at_times(schedule, t, noised.x)
        estimate = self.loss.prediction.x0(mean.detach(), noised.x, alpha, sigma, earlier)
        before = self.before(t)
        nats = mean_over(level_values(schedule, x0.to(estimate), estimate, t, v, before), area)
        return (len(self.visited) - 1) * nats / math.log(2.0)

    def before(self, t: Tensor) -> Tensor:
        """Return the times (B,) of the chain that steps from t (B,) lead to; -1 is the clean latent."""
        visited = self.visited.to(t)
        return visited[torch.searchsorted(visited, t) - 1]
