"""What a network that judges noisy latents is trained and measured on: x = alpha_t x0 + sigma_t noise at all times."""

import logging
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.data.batches.folder import ImageFolder
from latent_diffusion.data.batches.loader import Batch
from latent_diffusion.data.tensor_cache import open_cache
from latent_diffusion.diffusion.denoiser import at_times
from latent_diffusion.diffusion.forward import add_noise
from latent_diffusion.randomness import normal
from latent_diffusion.training.networks.frozen_states import Latents, Sharing

__all__ = ["NoisyLatents"]

logger = logging.getLogger(__name__)

MOST_LATENTS = 4 * 2**30  # bytes of latents kept in memory
BANDS = 4  # equal parts of the times; every held-out picture is seen at one time in each


class NoisyLatents:
    """Latents of a data set's pictures with noise; every draw has the sample's number as its key."""

    _latents: Latents  # set by `fill`

    def __init__(
        self, parts: Components, data: ImageFolder, times: Callable[[Sequence[int]], Tensor], seed: int
    ) -> None:
        """Take the model whose autoencoder and noise law are used; `fill` comes before the first batch.

        Args:
            parts: the model.
            data: pictures.
            times: sample numbers -> integer times (B,).
            seed: of the run.
        """
        self.autoencoder, self.schedule, self.data = parts.autoencoder, parts.schedule, data
        self.times, self.seed = times, seed

    def fill(self, sharing: Sharing) -> None:
        """Encode the pictures."""
        self._latents = Latents(self.autoencoder, self.data, self.seed, open_cache(self.data.config.cache))
        logger.info("encoding %d pictures", len(self.data))
        self._latents.fill(MOST_LATENTS, sharing)

    @property
    def cached(self) -> bool:
        """Whether the pictures themselves are no longer needed."""
        return self._latents.cached

    def __call__(self, batch: Batch, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return x (B, C, h, w), with the dtype and device of `like`, and network times (B,)."""
        x0 = self._latents(batch).to(like)
        noise = normal(self.seed, "noise", batch.sample, x0.shape[1:]).to(x0)
        return self._noised(x0, self.times(batch.sample).to(x0.device), noise)

    def held_out(self, data: ImageFolder, rows: Sequence[int], like: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield each quarter of the times, cleanest first, with held-out pictures there: x (B, C, h, w), times (B,)."""
        pixels = torch.stack([data.image(row) for row in rows]).float() / 127.5 - 1
        sizes = torch.tensor([data.size_ids(row) for row in rows], dtype=torch.float32)
        batch = Batch(tuple(rows), tuple(rows), pixels, ("",) * len(rows), (False,) * len(rows), sizes)
        x0 = Latents(self.autoencoder, data, self.seed)(batch).to(like)
        share = torch.tensor(rows, dtype=torch.float64) / len(data)
        for band in range(BANDS):
            t = ((band + share) / BANDS * self.schedule.num_train_timesteps).long().to(like.device)
            noise = normal(self.seed, "validation noise", [row * BANDS + band for row in rows], x0.shape[1:])
            yield band, *self._noised(x0, t, noise.to(x0))

    def _noised(self, x0: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma, _ = at_times(self.schedule, t, x0)
        return add_noise(x0, noise, alpha, sigma), torch.as_tensor(self.schedule.network_time(t)).float()
