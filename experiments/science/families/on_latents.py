"""Three processes on latents of pictures, without prompts: diffusion, critically damped Langevin diffusion, and a GAN.

    diffusion       v of the cosine law, by any sampler
    damped          the score by the velocity (diffusion/critically_damped.py), by Euler's method or by splitting
    denoising GAN   a generator of x0 for each of four large steps (diffusion/denoising_gan.py)

All read and make latents (4, 16, 16) with the product's U-Net; the GAN's critic has residual blocks without
normalisation.
References: Dockhorn et al. 2022, arXiv:2112.07068; Xiao et al. 2022, arXiv:2112.07804.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.science.families.blocks import GROUPS
from experiments.science.families.diffusion import CONTEXT, empty, even_times
from experiments.science.families.family import Draws, Family, drawn_in_batches
from latent_diffusion.diffusion.critically_damped import END, Damped
from latent_diffusion.diffusion.damped_steps import EulerMaruyama, Splitting, falling_times
from latent_diffusion.diffusion.denoising_gan import draw_pictures, large_steps
from latent_diffusion.diffusion.level import Level
from latent_diffusion.diffusion.loss import DiffusionLoss
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.prediction import V
from latent_diffusion.diffusion.spacing import levels
from latent_diffusion.models.unet import UNet, UNetConfig
from latent_diffusion.nn.embeddings import TimeEmbedding, sinusoids
from latent_diffusion.registry import find
from latent_diffusion.schedules.cosine import CosineSchedule
from latent_diffusion.training.losses.points.denoising_gan import (
    DenoisingDiscriminator,
    DenoisingGenerator,
    GanSettings,
    LargeSteps,
)

__all__ = ["CHANNELS", "SIDE", "DampedLatents", "DenoisingGAN", "LatentDiffusion"]

CHANNELS, SIDE = 4, 16
WIDTHS = (48, 64, 96)
LAST = 999.0  # of the times that the networks read
SLOPE = 0.2  # of the leaky ReLU
SPLITTING = Splitting()


class LatentUNet(nn.Module):
    """The product's U-Net with one empty text state; it may read a vector z, which joins the noise level's."""

    def __init__(self, inputs: int, end: float, latents: int = 0, widths: Sequence[int] = WIDTHS) -> None:
        """Build the network.

        Args:
            inputs: channels that are read; `CHANNELS` are made.
            end: the last time.
            latents: numbers of z.
            widths: channels of each level.
        """
        super().__init__()
        flat, ones = (False,) * len(widths), (1,) * len(widths)
        self.end = end
        self.unet = UNet(
            UNetConfig(SIDE, tuple(widths), 1, flat, ones, CONTEXT, inputs, CHANNELS, norm_num_groups=GROUPS)
        )
        self.mapping = TimeEmbedding(latents, 4 * widths[0]) if latents else None

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        """Return (B, 4, h, w) for x (B, C, h, w), z (B, Z) where the network reads one, and times (B,)."""
        *z, time = rest
        projected = self.unet.project(empty(len(x)))
        if self.mapping is not None:
            projected = replace(projected, added=self.mapping(*z))
        return self.unet(x, time * (LAST / self.end), projected)


class CriticBlock(nn.Module):
    """Two convolutions and a way around them, then half the size; normalising would hide contrast."""

    def __init__(self, inputs: int, outputs: int, time_width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.around, self.time = nn.Conv2d(inputs, outputs, 1, bias=False), nn.Linear(time_width, outputs)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Map x (B, C, h, w) to (B, C', h / 2, w / 2)."""
        y = self.first(F.leaky_relu(x, SLOPE)) + self.time(time)[:, :, None, None]
        y = self.second(F.leaky_relu(y, SLOPE))
        return F.avg_pool2d(y + self.around(x), 2) / 2**0.5


class LatentCritic(nn.Module):
    """A critic of latents before and after a step of noise, arXiv:2112.07804, appendix C."""

    def __init__(self, end: float, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.end, time_width = end, 2 * widths[0]
        self.embedding = TimeEmbedding(widths[0], time_width)
        self.start = nn.Conv2d(2 * CHANNELS, widths[0], 3, padding=1)
        pairs = zip((widths[0], *widths), widths, strict=False)
        self.blocks = nn.ModuleList(CriticBlock(narrow, wide, time_width) for narrow, wide in pairs)
        self.head = nn.Linear(widths[-1] * (SIDE >> len(widths)) ** 2, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, SLOPE)

    def forward(self, before: Tensor, after: Tensor, time: Tensor) -> Tensor:
        """Return logits (B, 1) for latents (B, 4, h, w) each and times (B,)."""
        features = sinusoids(time * (LAST / self.end), self.embedding.linear_1.in_features).to(before)
        embedded = F.leaky_relu(self.embedding(features), SLOPE)
        x = self.start(torch.cat([before, after], 1))
        for block in self.blocks:
            x = block(x, embedded)
        return self.head(F.leaky_relu(x, SLOPE).flatten(1))


class LatentDiffusion(Family):
    """Predicts v at 1,000 levels of the cosine law."""

    learning_rate = 5e-4

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.schedule = CosineSchedule()
        self.network = LatentUNet(CHANNELS, LAST, widths=widths)
        self.objective = DiffusionLoss(self.schedule, V)

    def loss(self, player: str, x: Tensor, draws: Draws) -> Tensor:
        """Return the mean square error of v."""
        t = even_times(x, draws, self.schedule.num_train_timesteps)
        return self.objective(self.network, x, t, draws.normal("noise", x)).mean()

    def denoise(self, x: Tensor, level: Level) -> Tensor:
        """Return the estimate of x0 (B, 4, h, w)."""
        return V.x0(self.network(x, torch.full((len(x),), level.t)), x, level.alpha, level.sigma)

    def sample(self, count: int, seed: int, sampler: str = "dpmpp_2m", steps: int = 20) -> Tensor:
        """Return latents by a sampler in `steps` network evaluations."""
        chosen, visited = find("latent_diffusion.samplers", sampler)(), levels(self.schedule, "trailing", steps)

        def draw(noise: NoiseSource) -> Tensor:
            *_, last = chosen(self.denoise, noise.draw((CHANNELS, SIDE, SIDE)), visited, noise)
            return last.x

        return drawn_in_batches(count, seed, draw)


class DampedLatents(Family):
    """Predicts the velocity's noise at times 0 .. END, spaced as the sampler's."""

    learning_rate = 5e-4

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.damped = Damped()
        self.network = LatentUNet(2 * CHANNELS, 1.0, widths=widths)

    def read(self, u: Tensor, a: Tensor) -> Tensor:
        """Return the network's output at times a (B,), of which it reads the root."""
        return self.network(u, (a / END).sqrt().to(u))

    def loss(self, player: str, x: Tensor, draws: Draws) -> Tensor:
        """Return the mean square error of the velocity's noise."""
        shares = even_times(x, draws, 10**6).double().add(0.5) / 10**6
        noise = draws.normal("noise", torch.cat([x, x], 1))
        return self.damped.losses(self.read, x, END * shares.clamp(min=1e-3) ** 2, noise).mean()

    def sample(self, count: int, seed: int, sampler: EulerMaruyama | Splitting = SPLITTING, steps: int = 50) -> Tensor:
        """Return latents in `steps` steps of a sampler."""
        score = self.damped.score(self.read)

        def draw(noise: NoiseSource) -> Tensor:
            *_, u = sampler(score, noise.draw((2 * CHANNELS, SIDE, SIDE)), falling_times(steps), noise.draw)
            return u[:, :CHANNELS]

        return drawn_in_batches(count, seed, draw)


@dataclass(frozen=True)
class Clean:
    """What the players of the GAN read: clean latents and the numbers of their samples."""

    sample: tuple[int, ...]
    values: Tensor


class DenoisingGAN(Family):
    """A generator and a critic of four large steps; the critic moves first in each update, and far faster.

    With equal rates the generator follows it at once, and both gradients vanish.
    """

    betas = (0.0, 0.99)

    def __init__(self, widths: Sequence[int] = WIDTHS, settings: GanSettings | None = None) -> None:
        super().__init__()
        self.settings = settings or GanSettings(steps=4, latents=64, r1=0.005, r1_every=16)
        steps = self.settings.steps
        self.generator = LatentUNet(CHANNELS, steps - 1.0, self.settings.latents, widths)
        self.critic = LatentCritic(steps - 1.0, widths)

    def players(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """Return the weights of both."""
        return {"critic": list(self.critic.parameters()), "generator": list(self.generator.parameters())}

    def rate(self, player: str) -> float:
        """Return the learning rate of a player."""
        return 1e-3 if player == "critic" else 5e-5

    def loss(self, player: str, x: Tensor, draws: Draws) -> Tensor:
        """Return the player's loss; the penalty of the critic comes in every 16th update."""
        process = LargeSteps(self.settings, draws.seed)
        batch = Clean(tuple(range(draws.first, draws.first + len(x))), x)
        if player == "generator":
            return DenoisingGenerator(self.generator, self.critic, process)(batch, draws.update).total.mean()
        discriminator = DenoisingDiscriminator(self.critic, self.generator, process, self.settings)
        return discriminator(batch, draws.update).total.mean()

    def sample(self, count: int, seed: int) -> Tensor:
        """Return latents in as many evaluations as there are steps."""

        def draw(noise: NoiseSource) -> Tensor:
            x = noise.draw((CHANNELS, SIDE, SIDE))
            *_, last = draw_pictures(
                self.generator, x, self.settings.latents, large_steps(self.settings.steps), noise.draw
            )
            return last.x

        return drawn_in_batches(count, seed, draw)
