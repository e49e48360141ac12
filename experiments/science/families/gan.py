"""Generative adversarial network: a generator draws from noise, and a critic learns to tell drawings from pictures.

    critic:     minimise E[ softplus(-D(x)) ] + E[ softplus(D(G(z))) ] + gamma / 2 E[ |dD/dx (x)|^2 ]
    generator:  minimise E[ softplus(-D(G(z))) ]

There is no density, hence no likelihood. The last term of the critic, its slope at real pictures, makes the game
converge near its equilibrium; it is taken every fourth update with four times the weight.

Reference: Goodfellow et al. 2014, arXiv:1406.2661, eq. 1 and section 3 (the generator's loss); Mescheder et al. 2018,
arXiv:1801.04406, eq. 9 (R1); Karras et al. 2020, arXiv:1912.04958, section 3.1 (lazily).
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.science.families.blocks import Decoder, Encoder
from experiments.science.families.family import Draws, Family, in_batches
from latent_diffusion.randomness import normal

__all__ = ["GAMMA", "GAN", "LAZY"]

LATENT = 64
WIDTHS = (48, 80, 120)
GAMMA = 0.1
LAZY = 4


class GAN(Family):
    """The critic moves first in each update."""

    learning_rate = 5e-4
    betas = (0.0, 0.99)  # arXiv:1801.04406: no momentum

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.generator = Decoder(widths, LATENT, 3)
        self.critic = Encoder(widths, 1)

    def players(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """Return the weights of both."""
        return {"critic": list(self.critic.parameters()), "generator": list(self.generator.parameters())}

    def loss(self, player: str, x: Tensor, draws: Draws) -> Tensor:
        """Return the player's loss, with a fresh z for each player."""
        drawn = self.draw(draws.normal(f"z of {player}", x.new_zeros(len(x), LATENT, 1, 1)))
        if player == "generator":
            return F.softplus(-self.critic(drawn)).mean()
        return self.critic_loss(x, drawn.detach(), with_slope=draws.update % LAZY == 0)

    def critic_loss(self, x: Tensor, drawn: Tensor, with_slope: bool) -> Tensor:
        """Return the critic's loss on pictures and drawings."""
        x = x.detach().requires_grad_(with_slope)
        of_real = self.critic(x)
        loss = F.softplus(-of_real).mean() + F.softplus(self.critic(drawn)).mean()
        if not with_slope:
            return loss
        (slope,) = torch.autograd.grad(of_real.sum(), x, create_graph=True)
        return loss + LAZY * GAMMA / 2 * slope.square().flatten(1).sum(1).mean()

    def draw(self, z: Tensor) -> Tensor:
        """Return pictures (B, 3, 32, 32) in [-1, 1] of z (B, Z, 1, 1)."""
        return torch.tanh(self.generator(z))

    def sample(self, count: int, seed: int) -> Tensor:
        """Return pictures of z from N(0, I)."""
        z = normal(seed, "sample z", range(count), (LATENT, 1, 1))
        return torch.cat([self.draw(part) for part in z.split(list(in_batches(count)))])
