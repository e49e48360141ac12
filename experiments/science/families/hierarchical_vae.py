"""Hierarchical variational autoencoder: the latents form a ladder, and each rung's prior depends on those above it.

    -log p(x) <= E_q[ -log p(x|z_1..z_L) + KL(q(z_1|x) || N(0, I)) + sum_l KL(q(z_l|x, z_<l) || p(z_l|z_<l)) ]

A diffusion model is such a ladder with a thousand rungs, each as large as the picture, and a q without weights.

Reference: Sønderby et al. 2016, arXiv:1602.02282, section 2.1 (priors and posteriors downwards); Vahdat & Kautz 2020,
arXiv:2007.03898, eq. 2 and section 3.2 (posteriors relative to the prior).
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from experiments.science.families.blocks import Decoder, Encoder, block, unfold
from experiments.science.families.family import Draws, Family, bits, in_batches
from experiments.science.families.vae import bounded, kl, log_likelihood
from latent_diffusion.randomness import normal

__all__ = ["HierarchicalVAE", "Rung"]

LATENT = 64  # of the top
WIDTHS = (32, 56, 72)
RUNGS = {0: 16, 1: 8, 2: 4}
"""Latent channels of the rung at each level of the decoder: 4, 8 and 16 px."""

Noise = Callable[[str, Tensor], Tensor]
"""(name of the latent, a tensor of its shape) -> standard normal noise."""


class Rung(nn.Module):
    """One latent z (B, Z, h, w) and what it adds to the decoder's features (B, W, h, w)."""

    def __init__(self, width: int, latent: int) -> None:
        super().__init__()
        self.prior = nn.Conv2d(width, 2 * latent, 3, padding=1)
        self.posterior = nn.Sequential(block(2 * width, width), nn.Conv2d(width, 2 * latent, 3, padding=1))
        self.add = nn.Conv2d(latent, width, 1)
        self.after = block(width, width)
        for layer in (self.prior, self.posterior[1]):  # at first every posterior is its prior, N(0, I)
            assert isinstance(layer, nn.Conv2d) and layer.bias is not None
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, seen: Tensor | None, noise: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Return the features with z, and the KL of z (B,) nats; 0 where z is drawn from the prior.

        Args:
            x: the decoder's features.
            seen: the encoder's features of the picture, shaped as x; None = draw from the prior.
            noise: gives standard normal noise shaped as its argument.
        """
        prior = self.prior(x).chunk(2, 1)
        mean, log_std = prior
        if seen is not None:
            shift, stretch = self.posterior(torch.cat([x, seen], 1)).chunk(2, 1)
            mean, log_std = mean + log_std.exp() * shift, log_std + stretch
        z = mean + log_std.exp() * noise(mean)
        return self.after(x + self.add(z)), kl(mean, log_std, *prior)


class HierarchicalVAE(Family):
    """A VAE with a rung after each of some levels of its decoder; without rungs it is `VAE`."""

    def __init__(self, rungs: Mapping[int, int] | None = None, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        self.encoder = Encoder(widths, 2 * LATENT)
        self.decoder = Decoder(widths, LATENT, 6)
        chosen = RUNGS if rungs is None else rungs
        self.rungs = nn.ModuleDict({str(n): Rung(widths[-1 - n], latent) for n, latent in chosen.items()})

    def decode(self, z: Tensor, seen: list[Tensor] | None, noise: Noise) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and log-deviation of the picture, (B, 3, 32, 32) each, and the KL of all rungs (B,)."""
        x, total = z, torch.zeros(len(z))
        for number in range(len(self.decoder.blocks)):
            x = self.decoder.level(number, x)
            if str(number) in self.rungs:
                found = None if seen is None else seen[-1 - number]
                x, distance = self.rungs[str(number)](x, found, lambda like, n=number: noise(f"z {n}", like))
                total = total + distance
        mean, log_std = unfold(self.decoder.end(x)).chunk(2, 1)
        return mean, bounded(log_std), total

    def bound(self, x: Tensor, draws: Draws) -> Tensor:
        """Return the upper bound on -log p(x), (B,) nats, with one draw of every latent."""
        seen = self.encoder.features(x)
        mean, log_std = self.encoder.end(seen[-1]).chunk(2, 1)
        z = mean + log_std.exp() * draws.normal("z", mean)
        x_mean, x_log_std, total = self.decode(z, seen, draws.normal)
        standard = torch.zeros_like(mean)
        return kl(mean, log_std, standard, standard) + total - log_likelihood(x, x_mean, x_log_std)

    def loss(self, player: str, x: Tensor, draws: Draws) -> Tensor:
        """Return the mean bound in bits a number."""
        return bits(self.bound(x, draws)).mean()

    def sample(self, count: int, seed: int) -> Tensor:
        """Return the means of pictures whose latents are drawn from their priors, from the top down."""
        done, drawn = 0, list[Tensor]()
        for size in in_batches(count):
            draws = Draws(seed, 0, done)
            z = normal(seed, "sample z", range(done, done + size), (LATENT, 1, 1))
            drawn.append(self.decode(z, None, draws.normal)[0])
            done += size
        return torch.cat(drawn)

    def bits_per_dimension(self, x: Tensor, draws: Draws) -> Tensor:
        """Return the upper bound."""
        return bits(self.bound(x, draws))
