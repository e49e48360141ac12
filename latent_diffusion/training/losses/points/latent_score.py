"""The players of a latent score model (LSGM): an autoencoder and the diffusion prior of its latents.

The negative bound on log p(x), in nats, is that of a VAE with the diffusion bound in the place of -log p(z):

    -log p(x | z) + log q(z | x) + L(z),      z ~ q(z | x) = N(mean(x), deviation(x)^2)

    L(z) = KL(q(z_T | z) || N(0, I)) + sum_t L_t,      one t a sample, drawn by the weight of its term

The prior's noise estimate is mixed: (1 - m) sigma_t z_t, which is that of latents N(0, I), plus m times a network's;
with m = 0 the model is a VAE. Autoencoder and prior have weights of their own: the first follows the bound, the other
the plain error of the noise.
Reference: Vahdat et al. 2021, arXiv:2106.05931, eq. 4, 5 (cross entropy), section 3.1 (mixed score), 3.3 (weights).
"""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from latent_diffusion.config import Section
from latent_diffusion.diffusion.bound import level_term, log_normal, prior_term
from latent_diffusion.diffusion.denoiser import at_times
from latent_diffusion.diffusion.forward import add_noise
from latent_diffusion.diffusion.level import NoiseSchedule
from latent_diffusion.diffusion.loss import DiffusionLoss
from latent_diffusion.diffusion.prediction import EPSILON
from latent_diffusion.models.plane_network import PlaneNetwork
from latent_diffusion.randomness import normal
from latent_diffusion.training.losses.keyed_times import KeyedTimes, TimesSettings
from latent_diffusion.training.losses.points.denoising_gan import Data
from latent_diffusion.training.objective import Losses, Player

__all__ = ["BoundTimes", "LatentModel", "LatentPlayer", "LatentSettings", "PriorPlayer"]


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

    def __init__(self, schedule: NoiseSchedule, dimensions: int, width: int, layers: int, mix: float) -> None:
        """Build the three networks for points of `dimensions` numbers and as many latents."""
        super().__init__()
        self.schedule, self.inputs, self.end = schedule, dimensions, schedule.num_train_timesteps - 1.0
        self.encoder = PlaneNetwork(dimensions, 2 * dimensions, width, layers, self.end)
        self.decoder = PlaneNetwork(dimensions, dimensions, width, layers, self.end)
        self.log_scale = nn.Parameter(torch.zeros(dimensions))  # of p(x | z)
        self.prior = PlaneNetwork(dimensions, dimensions, width, layers, self.end)
        self.mix = nn.Parameter(torch.full((dimensions,), mix).logit())

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of q(z | x)."""
        mean, log_deviation = self.encoder(x, x.new_zeros(len(x))).chunk(2, 1)
        return mean, log_deviation.exp()

    def decode(self, z: Tensor) -> Tensor:
        """Return the mean of p(x | z)."""
        return self.decoder(z, z.new_zeros(len(z)))

    def noise(self, z: Tensor, time: Tensor) -> Tensor:
        """Return the prior's estimate of the noise in z at times (B,), whole numbers."""
        _, sigma = self.schedule.alpha_sigma(time.round().long())
        mix = self.mix.sigmoid()
        return (1 - mix) * sigma.to(z)[:, None] * z + mix * self.prior(z, time)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return what all three networks make of points, for comparing models."""
        z, _ = self.encode(x)
        return torch.cat([self.decode(z), self.noise(z, time)], 1)

    def negative_bound(self, x: Tensor, noise: Tensor, t: Tensor | None, probability: Tensor | None) -> Tensor:
        """Return an estimate of the negative bound on log p(x), (B,) nats.

        Args:
            x: points (B, n).
            noise: standard normal (B, 2n): of the encoder, and of z_t.
            t: time of each sample's term, (B,); None: the prior is N(0, I) itself.
            probability: by which each time was drawn, (B,).
        """
        of_z, of_t = noise.chunk(2, 1)
        mean, deviation = self.encode(x)
        z = mean + deviation * of_z
        known = log_normal(z, mean, deviation**2) - log_normal(x, self.decode(z), (2 * self.log_scale).exp())
        if t is None or probability is None:
            return known - log_normal(z, torch.zeros_like(z), 1.0)
        alpha, sigma, _ = at_times(self.schedule, t, z)
        z_t = add_noise(z, of_t, alpha, sigma)
        estimate = (z_t - sigma * self.noise(z_t, t)) / alpha
        return known + prior_term(self.schedule, z) + level_term(self.schedule, z, estimate, t) / probability.to(z)


class BoundTimes:
    """Times drawn by the weight of their term in the bound, and the probability of each."""

    def __init__(self, schedule: NoiseSchedule, seed: int, batch_size: int) -> None:
        weights = DiffusionLoss(schedule, EPSILON, "bound").weight(torch.arange(schedule.num_train_timesteps))
        self.keyed = KeyedTimes(TimesSettings(law="importance"), weights, seed, batch_size)
        self.table = torch.from_numpy(self.keyed.probabilities)

    def __call__(self, samples: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return times (B,) and their probabilities (B,)."""
        t = self.keyed(samples)
        return t, self.table[t]


class LatentPlayer(Player):
    """Encoder and decoder, which follow the bound; the prior is used and not registered."""

    def __init__(self, model: LatentModel, times: BoundTimes | None, seed: int) -> None:
        """Take the model; without `times` its prior is N(0, I)."""
        super().__init__()
        self.encoder, self.decoder, self.log_scale = model.encoder, model.decoder, model.log_scale
        self.held, self.times, self.seed = (model,), times, seed

    def forward(self, batch: Data, step: int) -> Losses:
        """Return the negative bound of each sample, (B,) nats."""
        x = batch.values
        noise = normal(self.seed, "latent noise", batch.sample, (2 * x.shape[1],)).to(x)
        t, probability = (None, None) if self.times is None else self.times(batch.sample)
        return Losses(self.held[0].negative_bound(x, noise, t, probability))


class PriorPlayer(Player):
    """The prior and its mixing, which follow the error of the noise; the encoder is used and not registered."""

    def __init__(self, model: LatentModel, seed: int, batch_size: int) -> None:
        super().__init__()
        self.prior, self.mix = model.prior, model.mix
        self.held, self.seed = (model,), seed
        self.loss = DiffusionLoss(model.schedule, EPSILON)
        alike = torch.ones(model.schedule.num_train_timesteps)
        self.times = KeyedTimes(TimesSettings(), alike, seed, batch_size)

    def forward(self, batch: Data, step: int) -> Losses:
        """Return the error of the noise in each sample's latents, (B,)."""
        x, (model,) = batch.values, self.held
        of_z, noise = normal(self.seed, "prior noise", batch.sample, (2 * x.shape[1],)).to(x).chunk(2, 1)
        with torch.no_grad():
            mean, deviation = model.encode(x)
        return Losses(self.loss(model.noise, mean + deviation * of_z, self.times(batch.sample).to(x.device), noise))
