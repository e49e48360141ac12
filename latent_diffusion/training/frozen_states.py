"""Outputs of the frozen parts for the data, computed once: latents of pictures, text states of captions.

Caching changes nothing. Of a picture the posterior's mean and standard deviation are kept, and a fresh z is drawn from
them at every use, keyed as without a cache; of captions all that can be drawn are kept, the empty one of caption
dropout included. Either everything is kept or, over `most` bytes, nothing, and it is computed batch by batch: a cache
that fills on the way would make a resumed run differ from an uninterrupted one in the last bit.
"""

import logging
from collections.abc import Sequence

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
    """Scaled latents of batches of a data set's pictures."""

    def __init__(self, autoencoder: AutoencoderKL, data: ImageFolder, seed: int) -> None:
        """Take the parts; nothing is computed yet."""
        self._autoencoder, self._data, self._seed = autoencoder, data, seed
        self._kept: Tensor | None = None  # (flips, N, 2, C, h, w): mean and standard deviation

    @property
    def cached(self) -> bool:
        """Whether the pictures themselves are no longer needed."""
        return self._kept is not None

    @torch.no_grad()
    def fill(self, most: int) -> None:
        """Encode every picture, and its mirror image where the data set flips, if that takes at most `most` bytes."""
        config, size = self._autoencoder.config, self._data.config.size // self._autoencoder.factor
        flips = 2 if self._data.config.flip else 1
        shape = (flips, len(self._data), 2, config.latent_channels, size, size)
        like = next(self._autoencoder.parameters())
        needed = torch.Size(shape).numel() * like.element_size()
        if needed > most:
            logger.info("latents are computed in every step: keeping them takes %.1f GB", needed / 1e9)
            return
        kept = torch.empty(shape, dtype=like.dtype)
        for flip in range(flips):
            for start in range(0, len(self._data), CHUNK):
                rows = range(start, min(start + CHUNK, len(self._data)))
                pixels = torch.stack([self._data.image(row) for row in rows])
                pixels = pixels.flip(-1) if flip else pixels
                mean, std = self._encode(pixels.to(like.device, like.dtype) / 127.5 - 1)
                kept[flip, start : start + CHUNK] = torch.stack([mean, std], dim=1).cpu()
        self._check_finite(kept)
        self._kept = kept

    def _check_finite(self, kept: Tensor) -> None:
        """Refuse latents that would end the run at the same step every time.

        Raises:
            DataError: naming the pictures.
        """
        bad = (~kept.isfinite()).flatten(2).any(2).any(0).nonzero().flatten().tolist()
        if bad:
            names = ", ".join(repr(self._data.rows[row]["file_name"]) for row in bad[:10])
            raise DataError(
                f"the autoencoder's latents are NaN or infinite for {len(bad)} of {len(self._data)} pictures: {names}"
                f"{', ...' if len(bad) > 10 else ''}; leave them out, or set precision=float32"
            )

    def _encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(images.device.type, enabled=False):
            posterior = self._autoencoder.encode(images.contiguous(memory_format=torch.channels_last))
            return posterior.mean, torch.exp(0.5 * posterior.logvar)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """Return scaled latents (B, C, h, w), drawn from each picture's posterior with the sample's key."""
        like = next(self._autoencoder.parameters())
        if self._kept is None:
            mean, std = self._encode(batch.images.to(like))
        else:
            both = self._kept[torch.tensor(batch.flipped, dtype=torch.long), torch.tensor(batch.row)].to(like.device)
            mean, std = both.unbind(1)
        noise = normal(self._seed, "posterior", batch.sample, mean.shape[1:]).to(mean)
        return self._autoencoder.scale(mean + std * noise)


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
