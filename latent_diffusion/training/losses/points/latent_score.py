"""The players of a latent score model (LSGM): an autoencoder and the diffusion prior of its latents.

The negative bound on log p(x), in nats, is that of a VAE with the diffusion bound in the place of -log p(z):

    -log p(x | z) + log q(z | x) + L(z),      z ~ q(z | x) = N(mean(x), deviation(x)^2)

    L(z) = KL(q(z_1 | z) || N(0, I)) + (n / 2) (1 + log(2 pi e^START))
           + (END - START) / 2 E_u |noise - noise(z_u, u)|^2,            gamma = -log SNR = START + (END - START) u

in continuous time: a chain of 1,000 steps of the linear law adds .46 nats to each of n latents N(0, 1). The prior's
estimate of the noise is mixed: (1 - m) sigma_u z_u, which is that of latents N(0, I), plus m times a network's; with
m = 0 the model is a VAE. Autoencoder and prior both follow the bound; gamma rises evenly, so the prior's part is the
plain error.
Reference: Vahdat et al. 2021, arXiv:2106.05931, eq. 4, 5 (cross entropy), section 3.1 (mixed score), 3.3 (weights,
w_ll); Kingma et al. 2021, arXiv:2107.00630, eq. 13 and 17 (the bound by gamma).
"""

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from latent_diffusion.config import Section
from latent_diffusion.diffusion.bound import log_normal
from latent_diffusion.diffusion.forward import add_noise
from latent_diffusion.models.plane_network import PlaneNetwork
from latent_diffusion.randomness import normal
from latent_diffusion.training.losses.keyed_times import KeyedTimes
from latent_diffusion.training.losses.points.denoising_gan import Data
from latent_diffusion.training.objective import Losses, Player

__all__ = ["LatentModel", "LatentPlayer", "LatentSettings", "PriorPlayer"]

START, END = -10.0, 10.0  # -log SNR of the least and of the most noisy latents
FIRST_SCALE = -2.0  # log-deviation of p(x | z) before training; from 0 the encoder learns nothing


class LatentSettings(Section):
    """The `objective.latent:` section."""

    stage: Literal["vae", "prior", "joint"] = "vae"
    """vae: the autoencoder alone; prior: the diffusion prior of its frozen latents; joint: both."""
    init: str | None = None
    """Folder of the model that the stages prior and joint go on from."""
    mix: float = Field(default=0.1, gt=0, lt=1)
    """Share m of the network in the prior's estimate at the start of the stage vae; it is learned from then on."""

    @model_validator(mode="after")
    def _consistent(self) -> "LatentSettings":
        if (self.init is None) != (self.stage == "vae"):
            raise ValueError("the stages prior and joint go on from the folder `init`, and the stage vae from nothing")
        return self


class LatentModel(nn.Module):
    """Encoder, decoder and prior of points; everything is (B, n)."""

    end = 1.0  # of the times u

    def __init__(self, dimensions: int, width: int, layers: int, mix: float) -> None:
        """Build the three networks for points of `dimensions` numbers and as many latents."""
        super().__init__()
        self.inputs = dimensions
        self.encoder = PlaneNetwork(dimensions, 2 * dimensions, width, layers, self.end)
        self.decoder = PlaneNetwork(dimensions, dimensions, width, layers, self.end)
        self.log_scale = nn.Parameter(torch.full((dimensions,), FIRST_SCALE))  # of p(x | z)
        self.prior = PlaneNetwork(dimensions, dimensions, width, layers, self.end)
        self.mix = nn.Parameter(torch.full((dimensions,), mix).logit())

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of q(z | x)."""
        mean, log_deviation = self.encoder(x, x.new_zeros(len(x))).chunk(2, 1)
        return mean, log_deviation.exp()

    def decode(self, z: Tensor) -> Tensor:
        """Return the mean of p(x | z)."""
        return self.decoder(z, z.new_zeros(len(z)))

    def noise(self, z: Tensor, u: Tensor) -> Tensor:
        """Return the prior's estimate of the noise in z (B, n) at times u (B,), 0 to 1."""
        _, sigma = alpha_sigma(u, z)
        mix = self.mix.sigmoid()
        return (1 - mix) * sigma * z + mix * self.prior(z, u)

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """Return what all three networks make of points, for comparing models."""
        z, _ = self.encode(x)
        return torch.cat([self.decode(z), self.noise(z, u)], 1)

    def noise_error(self, z: Tensor, noise: Tensor, u: Tensor) -> Tensor:
        """Return |noise - noise(z_u, u)|^2, (B,), of latents (B, n) with noise (B, n) at times u (B,)."""
        alpha, sigma = alpha_sigma(u, z)
        return (noise - self.noise(add_noise(z, noise, alpha, sigma), u)).square().sum(1)

    def negative_bound(self, x: Tensor, noise: Tensor, u: Tensor | None) -> Tensor:
        """Return an estimate of the negative bound on log p(x), (B,) nats.

        Args:
            x: points (B, n).
            noise: standard normal (B, 2n): of the encoder, and of z_u.
            u: times (B,), uniform in [0, 1]; None: the prior is N(0, I) itself.
        """
        of_z, of_u = noise.chunk(2, 1)
        mean, deviation = self.encode(x)
        z = mean + deviation * of_z
        known = log_normal(z, mean, deviation**2) - log_normal(x, self.decode(z), (2 * self.log_scale).exp())
        if u is None:
            return known - log_normal(z, torch.zeros_like(z), 1.0)
        return known + ends_term(z) + (END - START) / 2 * self.noise_error(z, of_u, u)


def alpha_sigma(u: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factors of signal and noise at times u (B,), as (B, 1) factors of `like` (B, n)."""
    gamma = (START + (END - START) * u.to(like))[:, None]
    return (-gamma).sigmoid().sqrt(), gamma.sigmoid().sqrt()


def ends_term(z: Tensor) -> Tensor:
    """Return what both ends of the noise levels add to L(z), (B,) nats: no network is in it."""
    alpha, sigma = alpha_sigma(z.new_ones(1), z)
    noisiest = 0.5 * ((alpha * z).square() + sigma.square() - 1 - 2 * sigma.log()).sum(1)
    return noisiest + z.shape[1] / 2 * (1 + math.log(2 * math.pi) + START)


class LatentPlayer(Player):
    """Encoder and decoder, which follow the bound; the prior is used and not registered."""

    def __init__(self, model: LatentModel, times: KeyedTimes | None, seed: int) -> None:
        """Take the model; without `times` its prior is N(0, I)."""
        super().__init__()
        self.encoder, self.decoder, self.log_scale = model.encoder, model.decoder, model.log_scale
        self.held, self.times, self.seed = (model,), times, seed

    def forward(self, batch: Data, step: int) -> Losses:
        """Return the negative bound of each sample, (B,) nats."""
        x = batch.values
        noise = normal(self.seed, "latent noise", batch.sample, (2 * x.shape[1],)).to(x)
        u = None if self.times is None else x.new_tensor(self.times.shares(batch.sample))
        return Losses(self.held[0].negative_bound(x, noise, u))


class PriorPlayer(Player):
    """The prior and its mixing, which follow their part of the bound; the encoder is used and not registered."""

    def __init__(self, model: LatentModel, times: KeyedTimes, seed: int) -> None:
        super().__init__()
        self.prior, self.mix = model.prior, model.mix
        self.held, self.times, self.seed = (model,), times, seed

    def forward(self, batch: Data, step: int) -> Losses:
        """Return the error of the noise in each sample's latents, (B,)."""
        x, (model,) = batch.values, self.held
        of_z, noise = normal(self.seed, "prior noise", batch.sample, (2 * x.shape[1],)).to(x).chunk(2, 1)
        with torch.no_grad():
            mean, deviation = model.encode(x)
        u = x.new_tensor(self.times.shares(batch.sample))
        return Losses(model.noise_error(mean + deviation * of_z, noise, u))
