"""Variational autoencoder: a picture is drawn from one latent vector, which another network infers from the picture.

    -log p(x) <= E_q(z|x)[ -log p(x|z) ] + KL(q(z|x) || N(0, I)),     z = mean(x) + std(x) noise

Both q(z|x) and p(x|z) are Gaussians with independent entries, whose means and deviations are networks.

Reference: Kingma & Welling 2014, arXiv:1312.6114, eq. 3 and 10.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.science.families.blocks import Decoder, Encoder
from experiments.science.families.family import VALUES, Draws, Family, bits, in_batches
from latent_diffusion.randomness import normal

__all__ = ["VAE", "kl", "log_likelihood"]

LATENT = 64
WIDTHS = (48, 72, 104)
LEAST = math.log(2 / VALUES / math.sqrt(12))
"""Least log-deviation of a number of a picture: that of the noise by which its value was spread."""


def log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Return log N(x; mean, exp(log_std)^2), (B,) nats."""
    error = (x - mean) * (-log_std).exp()
    return -(0.5 * error.square() + log_std + 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)


def kl(mean: Tensor, log_std: Tensor, prior_mean: Tensor, prior_log_std: Tensor) -> Tensor:
    """Return KL(N(mean, std^2) || N(prior_mean, prior_std^2)), (B,) nats."""
    ratio = (2 * (log_std - prior_log_std)).exp()
    distance = ((mean - prior_mean) * (-prior_log_std).exp()).square()
    return (0.5 * (ratio + distance - 1) - (log_std - prior_log_std)).flatten(1).sum(1)


def bounded(log_std: Tensor) -> Tensor:
    """Return log-deviations of pictures that are never below the least."""
    return LEAST + F.softplus(log_std - LEAST)


class VAE(Family):
    """The encoder gives mean and log-deviation of z, (B, 2 Z, 1, 1); the decoder those of x, (B, 6, 32, 32)."""

    def __init__(self, encoder: nn.Module | None = None, decoder: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder = encoder or Encoder(WIDTHS, 2 * LATENT)
        self.decoder = decoder or Decoder(WIDTHS, LATENT, 6)

    def bound(self, x: Tensor, draws: Draws) -> Tensor:
        """Return the upper bound on -log p(x), (B,) nats, with one draw of z."""
        mean, log_std = self.encoder(x).chunk(2, 1)
        z = mean + log_std.exp() * draws.normal("z", mean)
        x_mean, x_log_std = self.decoder(z).chunk(2, 1)
        standard = torch.zeros_like(mean)
        return kl(mean, log_std, standard, standard) - log_likelihood(x, x_mean, bounded(x_log_std))

    def loss(self, player: str, x: Tensor, draws: Draws) -> Tensor:
        """Return the mean bound in bits a number."""
        return bits(self.bound(x, draws)).mean()

    def sample(self, count: int, seed: int) -> Tensor:
        """Return the decoder's means of z from N(0, I)."""
        z = normal(seed, "sample z", range(count), (LATENT, 1, 1))
        return torch.cat([self.decoder(part).chunk(2, 1)[0] for part in z.split(list(in_batches(count)))])

    def bits_per_dimension(self, x: Tensor, draws: Draws) -> Tensor:
        """Return the upper bound."""
        return bits(self.bound(x, draws))
