"""The players of pictures with partners: flows that start at the partner, and diffusion that reads it.

    x_t = alpha_t x0 + sigma_t noise

    Coupled    noise is the one for which x_T = start, in place of noise drawn at every use
               reflow: start is the noise from which the teacher draws x0
               bridge: start is the latents of another picture: the same thing in another style, or in a smaller size
    Beside     noise is drawn; the network reads [x_t, start]

Target and weight of the loss are those of ordinary training.
Reference: Liu et al. 2023, arXiv:2209.03003, algorithm 1 and section 2.1 (any coupling of two laws); Brooks et al.
2023, arXiv:2211.09800, section 3.2 (a picture's latents as more input channels).
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.data.batches.folder import ImageFolder
from latent_diffusion.data.batches.loader import Batch
from latent_diffusion.data.tensor_cache import TensorCache, key_of
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.spacing import levels
from latent_diffusion.diffusion.straight import far_end
from latent_diffusion.errors import DataError
from latent_diffusion.guidance.cfg import CFG
from latent_diffusion.models.unet import UNet
from latent_diffusion.randomness import normal, uniform
from latent_diffusion.samplers.dpmpp_2m import DPMpp2M
from latent_diffusion.training.losses.denoising import Denoising
from latent_diffusion.training.networks.frozen_states import ALONE, Latents, Sharing
from latent_diffusion.training.networks.preparing import with_progress
from latent_diffusion.training.networks.weights_digest import weights_digest

__all__ = ["Beside", "Coupled", "DrawnPairs", "Paired", "Partners"]

logger = logging.getLogger(__name__)

CHUNK = (
    32  # pairs that are drawn together, always the same ones: their bits do not depend on the process that draws them
)
WRITTEN = 16  # chunks in a file
UNBOUNDED = 2**60  # bytes that the folder of pairs may take: none is ever dropped


class Paired(Denoising):
    """The networks that are trained on pictures with a start, or partner, each."""

    coupling: "Coupling"  # set when the objective is prepared, before the first batch

    def _losses(self, batch: Batch) -> Tensor:
        """Return the losses (B,); a picture without a start has none."""
        losses = super()._losses(batch)
        return losses * self.coupling.weights(batch).to(losses)


class Coupled(Paired):
    """The networks that are trained to follow the lines between coupled ends."""

    def noise(self, batch: Batch, x0: Tensor) -> Tensor:
        """Return the noise (B, C, h, w) of each picture's line."""
        last = self.loss.schedule.level(self.loss.schedule.num_train_timesteps - 1)
        return far_end(x0, self.coupling.starts(batch).to(x0), last)


class Beside(Paired):
    """The networks that are trained to denoise a picture with its partner's latents beside the noisy ones."""

    def condition(self, batch: Batch) -> Conditioning:
        """Return what the captions condition on, and the partners' latents as more input channels (B, C, h, w)."""
        partners = self.coupling.starts(batch).to(self.unet.conv_in.weight)
        return replace(super().condition(batch), concat=partners)


class Coupling(Protocol):
    """What finds the start of each picture's line."""

    def starts(self, batch: Batch) -> Tensor:
        """Return the starts (B, C, h, w) of a batch."""
        ...

    def weights(self, batch: Batch) -> Tensor:
        """Return 1 for pictures with a start, else 0, float32 (B,)."""
        ...


class DrawnPairs:
    """Noise and what a teacher draws from it, by key: the drawn ends are kept on disk, the noise is drawn again.

    Pair k belongs to row k % N of the N rows and to its caption.
    """

    def __init__(
        self,
        parts: Components,
        data: ImageFolder,
        seed: int,
        folder: Path,
        per_picture: int,
        steps: int,
        scale: float,
        caption_chunks: int,
    ) -> None:
        """Take the teacher and how it draws; nothing is drawn yet."""
        self._data, self._seed, self._per_picture = data, seed, per_picture
        self._steps, self._scale = steps, scale
        side = data.config.size // parts.autoencoder.factor
        self._shape = (parts.autoencoder.config.latent_channels, side, side)
        self._stored = TensorCache(folder, UNBOUNDED)
        self._teacher = weights_digest(parts.unet, parts.text_encoder)
        self._law = repr((parts.schedule, parts.prediction.name, caption_chunks))
        self._drawn: Tensor | None = None  # (pairs, C, h, w)

    @property
    def cached(self) -> bool:
        """True: the pictures themselves are not needed."""
        return True

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self._data) * self._per_picture

    @torch.no_grad()
    def draw(
        self,
        parts: Components,
        teacher: UNet,
        encode: Callable[[Sequence[str]], Conditioning],
        sharing: Sharing = ALONE,
    ) -> None:
        """Draw what is not on the disk yet, each process its share, and read all pairs.

        Args:
            parts: the model.
            teacher: the U-Net, with the weights that the digest was made of.
            encode: captions -> their conditioning.
            sharing: how processes share the work.

        Raises:
            DataError: pairs that were drawn cannot be read.
        """
        self._law = f"{self._law} {teacher.conv_in.weight.dtype} {encode(['']).context.dtype}"
        chunks = [range(start, min(start + CHUNK, len(self))) for start in range(0, len(self), CHUNK)]
        missing = [chunk for chunk in chunks if any(self._stored.get(self._key(k)) is None for k in chunk)]
        logger.info("%d of %d pairs are in %s", len(self) - sum(map(len, missing)), len(self), self._stored.folder)
        like = teacher.conv_in.weight
        denoiser = parts.denoiser(teacher, like.dtype)
        last = parts.schedule.level(parts.schedule.num_train_timesteps - 1)
        visited = levels(parts.schedule, "karras" if last.alpha > 0 else "trailing", self._steps)
        mine = sharing.of(missing)
        for done, chunk in enumerate(with_progress(mine, sum(map(len, mine)), len, "drawing pairs"), 1):
            x = self._noise(chunk).to(like)
            prompt = encode([self._caption(k) for k in chunk]).to(like.device, like.dtype)
            empty = encode([""] * len(chunk)).to(like.device, like.dtype)
            for step in DPMpp2M()(CFG(self._scale).bind(denoiser, prompt, empty), x, visited, NoiseSource([0])):
                x = step.x
            for k, drawn in zip(chunk, x, strict=True):
                self._stored.put(self._key(k), drawn)
            if done % WRITTEN == 0:
                self._stored.flush()
        self._stored.flush()
        sharing.wait()
        self._stored.look_again()
        found = [self._stored.get(self._key(k)) for k in range(len(self))]
        there = [one for one in found if one is not None]
        if len(there) < len(self):
            raise DataError(
                f"objective.pairs.folder: {len(self) - len(there)} of {len(self)} pairs in {self._stored.folder} are "
                f"damaged or were removed since they were drawn; run again, which draws them anew"
            )
        self._drawn = torch.stack(there)

    def __call__(self, batch: Batch) -> Tensor:
        """Return the drawn ends (B, C, h, w) of a batch."""
        assert self._drawn is not None, "they are drawn first"
        return self._drawn[self._places(batch)]

    def starts(self, batch: Batch) -> Tensor:
        """Return the noise (B, C, h, w) that they were drawn from."""
        return self._noise(self._places(batch))

    def weights(self, batch: Batch) -> Tensor:
        """Return 1 for each picture, float32 (B,): every row has pairs."""
        return torch.ones(len(batch))

    def _places(self, batch: Batch) -> list[int]:
        drawn = [int(uniform(self._seed, "pair of a row", number) * self._per_picture) for number in batch.sample]
        return [row + len(self._data) * variant for row, variant in zip(batch.row, drawn, strict=True)]

    def _noise(self, pairs: Sequence[int]) -> Tensor:
        return normal(self._seed, "pair", pairs, self._shape)

    def _caption(self, k: int) -> str:
        return self._data.first_caption(k % len(self._data))

    def _key(self, k: int) -> str:
        how = (self._seed, k, self._steps, self._scale, repr(self._shape), self._law, torch.__version__)
        return key_of("pair 1", self._teacher, self._caption(k), *how)


class Partners:
    """The latents of the pictures from which others start, found by a field that both have.

    Attributes:
        rows: row of a picture -> row of its partner; pictures without one are absent.
    """

    def __init__(self, latents: Latents, rows: Mapping[int, int]) -> None:
        """Take the latents of the partners' data."""
        self._latents, self.rows = latents, rows

    def starts(self, batch: Batch) -> Tensor:
        """Return the starts (B, C, h, w); without a partner, those of some other picture, whose loss has no weight."""
        some = next(iter(self.rows.values()))
        return self._latents(replace(batch, row=tuple(self.rows.get(row, some) for row in batch.row)))

    def weights(self, batch: Batch) -> Tensor:
        """Return 1 for pictures with a partner, else 0, float32 (B,)."""
        return torch.tensor([float(row in self.rows) for row in batch.row])
