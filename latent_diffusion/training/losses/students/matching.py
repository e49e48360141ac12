"""The players of distribution matching distillation: a student of few steps, and a network that denoises its pictures.

    x0 = the student's picture: its sampler's first k steps without gradients, then one evaluation
    x  = alpha_t x0 + sigma_t noise
    student   the gradient of KL(its law || the teacher's) at x, from x0_fake(x) - x0_real(x)
    fake      |network(x, t) - target|^2 with x0 as data: the usual loss of denoising, so that x0_fake is of that law

The student makes one update for several of the fake network, which so keeps up with it. No picture of the data is
read: the student draws, by the captions. Every draw (k, the student's noise, t, noise, caption) has a key.
Reference: Yin et al. 2023, arXiv:2311.18828, algorithm 1; Yin et al. 2024, arXiv:2405.14867, sections 4.2 (two time
scales) and 4.5 (the first k steps: backward simulation). The discriminator of the second is left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.data.batches.folder import ImageFolder
from latent_diffusion.data.batches.loader import Batch
from latent_diffusion.diffusion.denoiser import at_times
from latent_diffusion.diffusion.distribution_matching import HIGH, LOW, matching_loss
from latent_diffusion.diffusion.forward import add_noise
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.spacing import levels
from latent_diffusion.models.unet import UNet
from latent_diffusion.randomness import generator, uniform
from latent_diffusion.samplers.lcm import LCM
from latent_diffusion.training.losses.denoising import Denoising, LossSettings
from latent_diffusion.training.losses.keyed_times import KeyedTimes, TimesSettings
from latent_diffusion.training.losses.students.distillation import Distillation

__all__ = ["Drawn", "Fake", "Matching"]


class Matching(Distillation):
    """A student whose pictures get the teacher's law."""

    fake: "tuple[Fake, ...]" = ()

    def __init__(
        self,
        parts: Components,
        trained: Mapping[str, nn.Module],
        teacher: UNet,
        settings: Any,  # those of the objective `distribution_matching`
        guidance_scale: float,
        seed: int,
        batch_size: int,
    ) -> None:
        """Take what `Distillation` takes; `settings.steps` and `settings.fake_updates` say how the student draws."""
        super().__init__(parts, trained, teacher, settings, guidance_scale, seed, batch_size)
        self.levels = levels(parts.schedule, "lcm", settings.steps)
        self.steps, self.fake_updates, self.batch_size = settings.steps, settings.fake_updates, batch_size
        inner = TimesSettings(low=LOW, high=HIGH)
        self.keyed_times = KeyedTimes(inner, torch.ones(parts.schedule.num_train_timesteps), seed, batch_size)

    def active(self, step: int) -> bool:
        """Return whether the student moves in update `step`: in every `fake_updates`-th."""
        return step % self.fake_updates == 0

    def times(self, samples: Sequence[int]) -> Tensor:
        """Return the time at which each picture is compared, int64 (B,)."""
        return self.keyed_times(samples)

    def place(self, batch: Batch) -> int:
        """Return the number k of steps before the one that is trained, the same for all pictures of an update."""
        return int(uniform(self.seed, "student steps", batch.sample[0] // self.batch_size) * self.steps)

    def drawn(self, batch: Batch, cond: Conditioning, shape: tuple[int, ...]) -> Tensor:
        """Return the student's pictures (B, C, h, w) in the network's dtype, with the graph of the last evaluation."""
        like = self.unet.conv_in.weight
        keys = [int(generator(self.seed, "student noise", n).integers(2**63)) for n in batch.sample]
        noise = NoiseSource([torch.Generator().manual_seed(key) for key in keys])
        x, k = noise.draw(shape).to(like), self.place(batch)
        denoise = self.parts[0].denoiser(self.unet, like.dtype).bind(cond)
        with torch.no_grad():
            for step in LCM()(denoise, x, self.levels[: k + 1], noise):
                x = step.x
        torch.clear_autocast_cache()  # torch 2.10 would take weights from it that were rounded without gradients
        return denoise(x, self.levels[k])

    def _losses(self, batch: Batch) -> Tensor:
        """Return the losses (B,) of pictures whose captions have equally many tokens."""
        cond, (fake,) = self.condition(batch), self.fake
        x0 = self.drawn(batch, cond, self.held[0].shape(batch))  # pyright: ignore[reportAttributeAccessIssue]  # `Drawn`
        t = self.times(batch.sample).to(x0.device)
        with torch.no_grad():
            alpha, sigma, _ = at_times(self.loss.schedule, t, x0)
            x = add_noise(x0, self.noise(batch, x0), alpha, sigma)
            real = self.teaching(batch, cond)(x, t)
            seen = self.function.x0(fake.network(cond), x, t)
        losses = matching_loss(x0, seen, real)
        return losses if batch.weights is None else losses * batch.weights.to(losses)


class Drawn:
    """What the student draws by the captions of a batch, in the place of the latents of its pictures.

    Attributes:
        cached: True: the pictures themselves are not needed.
    """

    cached = True

    def __init__(self, student: Matching, data: ImageFolder) -> None:
        """Take the student, and the data whose pictures have the sizes that it draws in."""
        self._student, self._data = student, data

    def shape(self, batch: Batch) -> tuple[int, ...]:
        """Return the shape (C, h, w) of the latents of each picture of a batch."""
        autoencoder = self._student.parts[0].autoencoder
        width, height = self._data.size_of(batch.row[0])
        return autoencoder.config.latent_channels, height // autoencoder.factor, width // autoencoder.factor

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """Return the student's pictures (B, C, h, w)."""
        student = self._student
        return student.drawn(batch, student.condition(batch), self.shape(batch))


class Fake(Denoising):
    """The network that denoises the student's pictures; its draws have keys of their own."""

    def __init__(
        self, parts: Components, trained: Mapping[str, nn.Module], seed: int, batch_size: int, *, shares: bool
    ) -> None:
        """Take the model that computes, what of it is trained, by name, and whether it shares the student's layers."""
        own = int(generator(seed, "fake", 0).integers(2**63))
        super().__init__(parts, trained, LossSettings(), own, batch_size)
        self._shares = shares

    def computing(self) -> tuple[nn.Module, ...]:
        """The U-Net whose layers may take faster kernels; one of shared layers has the student's."""
        return () if self._shares else super().computing()
