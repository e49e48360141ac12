"""The players of a denoising-diffusion GAN: a generator of x0, and a discriminator of pairs (x before, x after) noise.

    x_s ~ q(x_s | x0),   x_t ~ q(x_t | x_s),   x_s' ~ q(x_s | x_t, G(x_t, z, t))

    discriminator   softplus(-D(x_s, x_t, t)) + softplus(D(x_s', x_t, t)) + r1 / 2 |grad_{x_s} D(x_s, x_t, t)|^2
    generator       softplus(-D(x_s', x_t, t))

The penalty R1 is computed in every `r1_every`-th update, and counts that many times there.
Reference: Xiao et al. 2022, arXiv:2112.07804, eq. 5, 7 and appendix C; Mescheder et al. 2018, arXiv:1801.04406, eq. 9
(R1); Karras et al. 2020, arXiv:1912.04958, section 3.1 (lazy regularisation).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from latent_diffusion.config import Section
from latent_diffusion.diffusion.denoising_gan import large_steps
from latent_diffusion.diffusion.forward import forward_step
from latent_diffusion.diffusion.posterior import posterior, posterior_mean
from latent_diffusion.randomness import normal
from latent_diffusion.training.objective import Losses, Player

__all__ = ["DenoisingDiscriminator", "DenoisingGenerator", "GanSettings", "LargeSteps", "Pair"]


class GanSettings(Section):
    """The `objective.gan:` section."""

    steps: int = Field(default=4, ge=1, le=1000)
    """Steps of the forward process, T, and evaluations of the generator in drawing."""
    latents: int = Field(default=2, ge=1)
    """Numbers of the latent z that the generator reads beside x."""
    r1: float = Field(default=0.05, ge=0)
    """Weight of the penalty R1 on the discriminator's gradient; 0: none."""
    r1_every: int = Field(default=16, ge=1)
    """Updates from one computation of R1 to the next."""


class Data(Protocol):
    """A batch: the keys of its draws, and clean samples (B, ...)."""

    @property
    def sample(self) -> tuple[int, ...]:
        """Return global sample numbers (B,)."""
        ...

    @property
    def values(self) -> Tensor:
        """Return clean samples (B, ...)."""
        ...


class Pair(NamedTuple):
    """A sample before and after one step of noise, with what its reverse is drawn with."""

    before: Tensor  # x_s (B, ...)
    after: Tensor  # x_t, as x_s
    t: Tensor  # time of x_t (B,), 0 .. T - 1; that of x_s is one less
    z: Tensor  # latent of the generator (B, Z)
    noise: Tensor  # of the posterior, as x_s


class LargeSteps:
    """The forward process in T steps: pairs of it, and their reverse; each time has the same share of a batch."""

    def __init__(self, settings: GanSettings, seed: int) -> None:
        """Take the number of steps and of latents, and the seed of the run."""
        self.seed, self.latents = seed, settings.latents
        rising = large_steps(settings.steps)[::-1]
        self.alpha = torch.tensor([level.alpha for level in rising], dtype=torch.float64)  # clean first
        self.sigma = torch.tensor([level.sigma for level in rising], dtype=torch.float64)

    def pair(self, x0: Tensor, samples: Sequence[int], purpose: str) -> Pair:
        """Return a draw of x_s and x_t for clean samples (B, ...), keyed with the samples' numbers and `purpose`."""
        size = x0[0].numel()
        drawn = normal(self.seed, purpose, samples, (3 * size + self.latents,)).to(x0)
        first, second, third, z = drawn.split([size, size, size, self.latents], 1)
        t = torch.tensor([number % (len(self.alpha) - 1) for number in samples], device=x0.device)
        (alpha, sigma), (alpha_after, sigma_after) = self._at(t, x0), self._at(t + 1, x0)
        before = alpha * x0 + sigma * first.view_as(x0)
        after = forward_step(before, second.view_as(x0), (alpha, sigma), (alpha_after, sigma_after))
        return Pair(before, after, t, z, third.view_as(x0))

    def undone(self, x0: Tensor, pair: Pair) -> Tensor:
        """Return a draw of x_s (B, ...) from its posterior given x_t and an estimate of x0 (B, ...)."""
        (alpha, sigma), (alpha_after, sigma_after) = self._at(pair.t, x0), self._at(pair.t + 1, x0)
        step = posterior(alpha_after, sigma_after, alpha, sigma)
        return posterior_mean(pair.after, x0, step) + step.variance**0.5 * pair.noise

    def _at(self, place: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1, *[1] * (like.ndim - 1))
        return self.alpha.to(like)[place].view(shape), self.sigma.to(like)[place].view(shape)


class DenoisingGenerator(Player):
    """G; the discriminator is used and not registered."""

    def __init__(self, network: nn.Module, discriminator: nn.Module, process: LargeSteps) -> None:
        super().__init__()
        self.network, self.process = network, process
        self.held: tuple[nn.Module] = (discriminator,)

    def forward(self, batch: Data, step: int) -> Losses:
        """Return the loss of each sample's step, (B,)."""
        pair = self.process.pair(batch.values, batch.sample, "generator")
        made = self.process.undone(self.network(pair.after, pair.z, pair.t), pair)
        return Losses(_each(F.softplus(-self.held[0](made, pair.after, pair.t))))


class DenoisingDiscriminator(Player):
    """D; the generator is used and not registered."""

    def __init__(
        self, network: nn.Module, generator: Callable[..., Tensor], process: LargeSteps, settings: GanSettings
    ) -> None:
        super().__init__()
        self.network, self.process, self.settings = network, process, settings
        self.held = (generator,)

    def forward(self, batch: Data, step: int) -> Losses:
        """Return the loss of each sample's step, (B,), with R1 in every `r1_every`-th update."""
        settings = self.settings
        pair = self.process.pair(batch.values, batch.sample, "discriminator")
        with torch.no_grad():
            made = self.process.undone(self.held[0](pair.after, pair.z, pair.t), pair)
        penalised = settings.r1 > 0 and step % settings.r1_every == 0
        before = pair.before.requires_grad_(penalised)
        real, false = (self.network(x, pair.after, pair.t) for x in (before, made))
        losses = _each(F.softplus(-real) + F.softplus(false))
        if penalised:
            (slope,) = torch.autograd.grad(real.sum(), before, create_graph=True)
            losses = losses + 0.5 * settings.r1 * settings.r1_every * slope.square().flatten(1).sum(1)
        return Losses(losses, {"real": _each(real.detach()), "made": _each(false.detach())})


def _each(logits: Tensor) -> Tensor:
    """Return the mean of each sample's logits, (B,), from one or many a sample."""
    return logits.view(len(logits), -1).mean(1)
