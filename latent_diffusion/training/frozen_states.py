"""Outputs of the frozen parts for the data, computed once: latents of pictures, text states of captions.

Caching changes nothing. Of a picture the posterior's mean and log-variance are kept, and a fresh z is drawn from them
at every use, keyed as without a cache; of captions all that can be drawn are kept, the empty one of caption
dropout included. Either everything is kept or, over `most` bytes, nothing, and it is computed batch by batch: a cache
that fills on the way would make a resumed run differ from an uninterrupted one in the last bit.
"""

import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from latent_diffusion.conditioning import Conditioning
from latent_diffusion.data.folder import ImageFolder
from latent_diffusion.data.loader import Batch
from latent_diffusion.errors import DataError
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.models.text_encoder import TextEncoder, TextEncoders
from latent_diffusion.randomness import normal

__all__ = ["Latents", "LiveTextStates", "TextStates"]

logger = logging.getLogger(__name__)
CHUNK = 32  # pictures or captions at a time


class Latents:
    """Scaled latents of batches of a data set's pictures.

    On a CPU every picture is encoded alone, so that its latents have the same bits in any batch, cached or not; on a
    GPU pictures of one size are encoded together.
    """

    def __init__(self, autoencoder: AutoencoderKL, data: ImageFolder, seed: int) -> None:
        """Take the parts; nothing is computed yet."""
        self._autoencoder, self._data, self._seed = autoencoder, data, seed
        self._kept: list[dict[int, Tensor]] | None = None  # (2, C, h, w) by flip and row: mean and log-variance

    @property
    def cached(self) -> bool:
        """Whether the pictures themselves are no longer needed."""
        return self._kept is not None

    def _bytes(self) -> int:
        """Return what the latents of all pictures take."""
        element = next(self._autoencoder.parameters()).element_size()
        sizes = (self._data.size_of(row) for row in range(len(self._data)))
        pixels = sum(width * height * (1 + self._data.flips(row)) for row, (width, height) in enumerate(sizes))
        return 2 * self._autoencoder.config.latent_channels * pixels // self._autoencoder.factor**2 * element

    @torch.no_grad()
    def fill(self, most: int) -> None:
        """Encode every picture, and its mirror image where the data set flips, if that takes at most `most` bytes."""
        if self._data.random_crops:
            logger.info("latents are computed in every step: crops are drawn for every sample")
            return
        if (needed := self._bytes()) > most:
            logger.info("latents are computed in every step: keeping them takes %.1f GB", needed / 1e9)
            return
        kept: list[dict[int, Tensor]] = [{}, {}]
        for flip in (False, True):
            rows = [row for row in range(len(self._data)) if not flip or self._data.flips(row)]
            for chosen in _same_size(self._data, rows):
                pixels = torch.stack([self._data.image(row) for row in chosen])
                made = self._encode_pixels(pixels.flip(-1) if flip else pixels)
                kept[flip] |= dict(zip(chosen, made.cpu().clone(), strict=True))
        self._check_finite(kept)
        self._kept = kept

    def _check_finite(self, kept: list[dict[int, Tensor]]) -> None:
        """Refuse latents that would end the run at the same step every time.

        Raises:
            DataError: naming the pictures.
        """
        bad = sorted({row for rows in kept for row, latents in rows.items() if not bool(latents.isfinite().all())})
        if bad:
            names = ", ".join(repr(self._data.rows[row]["file_name"]) for row in bad[:10])
            raise DataError(
                f"the autoencoder's latents are NaN or infinite for {len(bad)} of {len(self._data)} pictures: {names}"
                f"{', ...' if len(bad) > 10 else ''}; leave them out, or set precision=float32"
            )

    def _encode_pixels(self, pixels: Tensor) -> Tensor:
        """Return mean and log-variance (B, 2, C, h, w) of pictures (B, 3, H, W) uint8."""
        like = next(self._autoencoder.parameters())
        return self._encode(pixels.float().div_(127.5).sub_(1).to(like))

    def _encode(self, images: Tensor) -> Tensor:
        """Return mean and log-variance (B, 2, C, h, w) of pictures (B, 3, H, W) in [-1, 1]."""
        parts = images.split(1 if images.device.type == "cpu" else CHUNK)
        with torch.autocast(images.device.type, enabled=False):
            made = [self._autoencoder.encode(part.contiguous(memory_format=torch.channels_last)) for part in parts]
        return torch.cat([torch.stack([one.mean, one.logvar], dim=1) for one in made])

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """Return scaled latents (B, C, h, w), drawn from each picture's posterior with the sample's key."""
        like = next(self._autoencoder.parameters())
        if self._kept is None:
            both = self._encode(batch.images.to(like))
        else:
            rows = zip(batch.flipped, batch.row, strict=True)
            both = torch.stack([self._kept[flipped][row] for flipped, row in rows]).to(like.device)
        mean, logvar = both.unbind(1)
        noise = normal(self._seed, "posterior", batch.sample, mean.shape[1:]).to(mean)
        return self._autoencoder.scale(mean + torch.exp(0.5 * logvar) * noise)


def _same_size(data: ImageFolder, rows: Sequence[int]) -> Iterator[list[int]]:
    """Yield the rows in chunks whose pictures have one size."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for row in rows:
        by_size.setdefault(data.size_of(row), []).append(row)
    for same in by_size.values():
        yield from (same[start : start + CHUNK] for start in range(0, len(same), CHUNK))


class TextStates:
    """Conditioning of batches of captions, in the dtype the network reads them in."""

    def __init__(self, text_encoder: TextEncoder | TextEncoders, dtype: torch.dtype) -> None:
        """Take the encoder; nothing is computed yet."""
        self.encoder, self.dtype = text_encoder, dtype
        self._kept: Conditioning | None = None  # of all captions, on the CPU
        self._place: dict[str, int] = {}

    @torch.no_grad()
    def fill(self, captions: Sequence[str], most: int) -> None:
        """Encode each distinct caption once, if that takes at most `most` bytes; say how many are too long."""
        distinct = list(dict.fromkeys(captions))
        room = self.encoder.context_length - 2
        cut = [caption for caption in distinct if len(caption) > room]  # a token has one letter or more
        cut = [caption for caption, count in zip(cut, self.encoder.token_counts(cut)) if count > room]
        if cut:
            logger.warning("%d captions have more than %d tokens and are cut, first %r", len(cut), room, cut[0][:80])
        length, width, pooled = self.encoder.context_length, self.encoder.width, self.encoder.pooled_width
        needed = len(distinct) * (length * width + pooled) * torch.empty(0, dtype=self.dtype).element_size()
        if needed > most:
            logger.info("text states are computed in every step: keeping them takes %.1f GB", needed / 1e9)
            return
        context = torch.empty(len(distinct), length, width, dtype=self.dtype)
        kept = Conditioning(context, torch.empty(len(distinct), pooled, dtype=self.dtype) if pooled else None)
        for start in range(0, len(distinct), CHUNK):
            made = self._encode(distinct[start : start + CHUNK])
            context[start : start + CHUNK] = made.context.cpu()
            if kept.pooled is not None and made.pooled is not None:
                kept.pooled[start : start + CHUNK] = made.pooled.cpu()
        self._kept, self._place = kept, {caption: place for place, caption in enumerate(distinct)}

    def _encode(self, captions: Sequence[str]) -> Conditioning:
        with torch.autocast(self.encoder.device.type, enabled=False):
            return self.encoder(list(captions)).to(dtype=self.dtype)

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> Conditioning:
        """Return the conditioning of B captions: context (B, L, D) and, of two towers, pooled (B, P)."""
        if self._kept is None:
            return self._encode(captions)
        rows = torch.tensor([self._place[caption] for caption in captions])
        return self._kept.map(lambda kept: kept[rows]).to(self.encoder.device)


class LiveTextStates:
    """Conditioning of batches of captions by a text encoder that is trained: encoded in every step, with gradients."""

    def __init__(self, text_encoder: TextEncoder | TextEncoders) -> None:
        """Take the encoder."""
        self.encoder = text_encoder

    def __call__(self, captions: Sequence[str]) -> Conditioning:
        """Return the conditioning of B captions, with its graph where gradients are on."""
        return self.encoder(list(captions))
