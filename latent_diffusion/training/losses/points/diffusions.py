"""The players of diffusion and of critically damped Langevin diffusion on samples of any shape, with keyed draws."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from latent_diffusion.diffusion.critically_damped import END, Damped
from latent_diffusion.diffusion.loss import DiffusionLoss
from latent_diffusion.randomness import normal
from latent_diffusion.training.losses.keyed_times import KeyedTimes, TimesSettings
from latent_diffusion.training.losses.points.denoising_gan import Data
from latent_diffusion.training.objective import Losses, Player

__all__ = ["DampedPlayer", "DiffusionPlayer"]


class DiffusionPlayer(Player):
    """A network that is trained to denoise."""

    def __init__(self, network: nn.Module, loss: DiffusionLoss, seed: int, batch_size: int) -> None:
        super().__init__()
        self.network, self.loss, self.seed = network, loss, seed
        alike = torch.ones(loss.schedule.num_train_timesteps)
        self.times = KeyedTimes(TimesSettings(), alike, seed, batch_size)

    def forward(self, batch: Data, step: int) -> Losses:
        """Return the loss of each sample, (B,)."""
        x0 = batch.values
        noise = normal(self.seed, "noise", batch.sample, x0.shape[1:]).to(x0)
        return Losses(self.loss(self.network, x0, self.times(batch.sample).to(x0.device), noise))


class DampedPlayer(Player):
    """A network that is trained for the score by the velocity, by hybrid score matching.

    Times are a = END u^2 with u spread evenly over the batch, as the sampler's steps are spaced.
    """

    def __init__(self, network: nn.Module, damped: Damped, seed: int, batch_size: int) -> None:
        super().__init__()
        self.network, self.damped, self.seed = network, damped, seed
        self.times = KeyedTimes(TimesSettings(), torch.ones(1), seed, batch_size)

    def forward(self, batch: Data, step: int) -> Losses:
        """Return the loss of each sample, (B,)."""
        x0 = batch.values
        noise = normal(self.seed, "noise", batch.sample, (2 * x0.shape[1], *x0.shape[2:])).to(x0)
        shares = torch.tensor(self.times.shares(batch.sample), dtype=torch.float64, device=x0.device)
        a = END * shares.clamp(min=1e-3) ** 2
        network: Callable[[Tensor, Tensor], Tensor] = self.network
        return Losses(self.damped.losses(network, x0, a, noise))
