"""What inpainting works on: the picture, its mask, the region in view, and what is known of it in latent space.

The sampler knows nothing of it: what is known is kept by `diffusion.known.keep_known`, and the pixels outside the mask
are never written, so they are those of the input, bit for bit, whatever the autoencoder loses.
"""

import hashlib
import os
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from latent_diffusion.data.images import load_image, to_tensor
from latent_diffusion.diffusion.level import Level
from latent_diffusion.errors import ConfigError
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.pipeline.fill import CONTENTS, fill_hole
from latent_diffusion.pipeline.masks import inward_weights, load_mask, max_pool
from latent_diffusion.pipeline.region import Region
from latent_diffusion.registry import nearest

__all__ = ["STARTS", "Canvas", "Known", "choose_start"]

STARTS = ("noise", "noised_image")
MAX_FEATHER = 64  # px
MAX_PADDING = 1_000_000  # px; more than any picture has a side
Source = str | os.PathLike[str] | Image.Image


@dataclass(frozen=True)
class Canvas:
    """A picture, its mask and the region that is worked on."""

    picture: Image.Image  # RGB
    alpha: Image.Image | None  # handed back unchanged
    mask: np.ndarray  # (H, W) bool, True = repaint
    region: Region | None  # None = the mask is empty
    feather: int  # px
    profile: bytes | None  # ICC profile of the input

    @classmethod
    def read(
        cls, image: Source, mask_image: Source, *, work: tuple[int, int], padding: int | None, feather: int
    ) -> "Canvas":
        """Read a picture and its mask; `work` is the model's width and height in px.

        Raises:
            DataError: one cannot be read, or their sizes differ.
            ConfigError: padding or feather outside its range.
        """
        natural = isinstance(padding, int) and not isinstance(padding, bool) and 0 <= padding <= MAX_PADDING
        if padding is not None and not natural:
            raise ConfigError(
                f"padding_mask_crop {padding!r:.50} is not a number of px from 0 to {MAX_PADDING}, or None"
            )
        if isinstance(feather, bool) or not isinstance(feather, int) or not 0 <= feather <= MAX_FEATHER:
            raise ConfigError(f"feather {feather!r} is not an integer from 0 to {MAX_FEATHER} px")
        picture = load_image(image, background=None)
        alpha = picture.getchannel("A") if picture.mode == "RGBA" else None
        mask = load_mask(mask_image, picture.size)
        region = Region.around(mask, work, padding) if mask.any() else None
        profile = picture.info.get("icc_profile")
        if not isinstance(profile, bytes) or profile[16:20] != b"RGB ":
            profile = None  # of the grey or CMYK picture this was, which says nothing about RGB values
        return cls(picture.convert("RGB"), alpha, mask, region, feather, profile)

    def unchanged(self) -> Image.Image:
        """Return the input as it was read."""
        return self._finish(self.picture.copy())

    def paste(self, painted: Image.Image) -> Image.Image:
        """Return the whole picture with `painted` (of the working size) inside the mask."""
        assert self.region is not None, "an empty mask has nothing to paste"
        x0, y0, x1, y1 = self.region.box
        pixels = np.array(self.picture)
        old = pixels[y0:y1, x0:x1]
        weights = inward_weights(self.mask, self.feather)[y0:y1, x0:x1, None]
        new = np.asarray(self.region.give_back(painted))
        mixed = np.rint(old + weights * (new.astype(np.float32) - old)).astype(np.uint8)
        pixels[y0:y1, x0:x1] = np.where(self.mask[y0:y1, x0:x1, None], mixed, old)
        return self._finish(Image.fromarray(pixels))

    def _finish(self, picture: Image.Image) -> Image.Image:
        if self.alpha is not None:
            picture.putalpha(self.alpha)
        picture.info.pop("icc_profile", None)
        if self.profile:
            picture.info["icc_profile"] = self.profile
        return picture

    def hashes(self) -> tuple[str, str]:
        """Return the sha256 of the picture's pixels and of the mask, by which a record recognises them."""
        return _sha256(self.picture.tobytes()), _sha256(self.mask.tobytes())


@dataclass(frozen=True)
class Known:
    """What is known in latent space."""

    latents: Tensor  # (1, C, h, w) of the picture, scaled
    mask: Tensor  # (1, 1, h, w), 1 = repaint
    content: Tensor  # (1, C, h, w): the picture with what stands in the hole at first

    @classmethod
    def encode(cls, canvas: Canvas, autoencoder: AutoencoderKL, masked_content: str, noise: Tensor | None) -> "Known":
        """Encode the region of `canvas`.

        Args:
            canvas: with a mask that is not empty.
            autoencoder: float32.
            masked_content: one of `CONTENTS`. Except for "original" the old content is taken out before encoding, so
                that it does not leak through the encoder's receptive field.
            noise: (B, C, h, w) standard normal, for the content "noise".

        Raises:
            ConfigError: unknown `masked_content`.
        """
        _check_name("masked_content", masked_content, CONTENTS)
        assert canvas.region is not None, "an empty mask has nothing to encode"
        device = next(autoencoder.parameters()).device
        hole = canvas.region.take_mask(canvas.mask)
        # what shows through transparent parts is not picture: the network sees white there
        image = to_tensor(canvas.region.take(_on_white(canvas)))[None].to(device)
        if masked_content != "original":
            image = fill_hole(image, torch.from_numpy(hole).to(image)[None, None])
        latents = autoencoder.to_latents(image)
        height, width = latents.shape[-2:]
        mask = torch.from_numpy(max_pool(hole, height, width)).to(latents)[None, None]
        content = latents
        if masked_content == "noise" and noise is not None:
            content = torch.lerp(latents.expand_as(noise), noise.to(latents), mask.expand_as(noise))
        elif masked_content == "nothing":
            content = latents * (1 - mask)
        return cls(latents, mask, content)

    def start(self, start_from: str, noise: Tensor, level: Level) -> Tensor:
        """Return x (B, C, h, w) at `level`: pure noise, or the content with noise on it."""
        if start_from == "noise":
            return noise
        return level.alpha * self.content + level.sigma * noise


def choose_start(start_from: str | None, masked_content: str, strength: float) -> str:
    """Return where sampling starts: "noise" for an emptied hole, "noised_image" otherwise, unless the caller says.

    Raises:
        ConfigError: unknown, or pure noise in the middle of the path (strength below 1).
    """
    if start_from is None:
        emptied = masked_content in ("noise", "nothing") and strength == 1.0
        return "noise" if emptied else "noised_image"
    _check_name("start_from", start_from, STARTS)
    if start_from == "noise" and strength < 1.0:
        raise ConfigError(f"start_from 'noise' needs strength 1, not {strength:g}; use 'noised_image'")
    return start_from


def _on_white(canvas: Canvas) -> Image.Image:
    if canvas.alpha is None:
        return canvas.picture
    white = Image.new("RGB", canvas.picture.size, (255, 255, 255))
    return Image.composite(canvas.picture, white, canvas.alpha)


def _check_name(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"unknown {name} {value!r}; there are {', '.join(known)}{nearest(str(value), known)}")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
