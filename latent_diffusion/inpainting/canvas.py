"""The input of inpainting: the picture, its mask and the region that is repainted.

The pixels outside the mask are never written, so they are those of the input, bit for bit, whatever the autoencoder
loses and wherever the model worked.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from latent_diffusion.data.pictures.images import ImageSource, load_image, to_pil, to_tensor
from latent_diffusion.inpainting.color_match import match_colors
from latent_diffusion.inpainting.latent_canvas import LatentCanvas
from latent_diffusion.inpainting.masks import FULL, fade_in, grow, inward_weights, load_mask, thresholded
from latent_diffusion.inpainting.region import Region
from latent_diffusion.inpainting.repainting import Repainting
from latent_diffusion.models.autoencoder import AutoencoderKL

__all__ = ["Canvas"]

OPAQUE_FROM = 2.0  # a soft mask's strength times this is how much of the new picture is seen: all of it from a half on


@dataclass(frozen=True)
class Canvas:
    """A picture, its mask and the region that is worked on."""

    picture: Image.Image  # RGB
    alpha: Image.Image | None  # handed back unchanged, but opaque where a hole of it was the mask
    mask: np.ndarray  # (H, W) uint8, 0 = kept, 255 = repainted
    region: Region | None  # None = the mask is empty
    settings: Repainting
    profile: bytes | None  # ICC profile of the input
    drawn: np.ndarray  # (H, W) the mask as it was given: uint8, or bool in binary mode
    brightest: int  # largest value of the mask as it was given, 0 .. 255

    @classmethod
    def read(cls, image: ImageSource, mask_image: ImageSource, settings: Repainting, work: tuple[int, int]) -> "Canvas":
        """Read a picture and its mask; `work` is the model's width and height in px.

        Raises:
            DataError: one cannot be read, or their sizes differ.
        """
        picture = load_image(image, background=None)
        alpha = picture.getchannel("A") if picture.mode == "RGBA" else None
        soft = settings.mask_mode == "soft"
        grey = load_mask(mask_image, picture.size, "soft", settings.mask_channel, invert=settings.mask_invert)
        drawn = grey if soft else thresholded(grey)
        mask = fade_in(grow(drawn, settings.mask_grow), settings.mask_blur)
        region = None
        if mask.any():
            region = Region.around(mask, work, settings.padding_mask_crop, settings.inpaint_area)
        profile = picture.info.get("icc_profile")
        if not isinstance(profile, bytes) or profile[16:20] != b"RGB ":
            profile = None  # of the original grey or CMYK picture; not valid for RGB values
        drawn = drawn if soft else drawn > 0
        return cls(picture.convert("RGB"), alpha, mask, region, settings, profile, drawn, int(grey.max()))

    def hashes(self, added: tuple[int, int, int, int] | None = None) -> tuple[str, str]:
        """Return the sha256 of the picture's pixels and of the mask, by which a record identifies them.

        `added` are px on the left, right, top and bottom that are not the picture's own.
        """
        left, right, top, bottom = added or (0, 0, 0, 0)
        own = self.picture.crop((left, top, self.picture.width - right, self.picture.height - bottom))
        return _sha256(own.tobytes()), _sha256(self.drawn.tobytes())

    def unchanged(self) -> Image.Image:
        """Return the input as it was read."""
        return self._finish(self.picture.copy(), self.alpha)

    @cached_property
    def view(self) -> tuple[Tensor, np.ndarray]:
        """The region at the working size: the picture (1, 3, H, W) in [-1, 1] and the mask (H, W)."""
        assert self.region is not None, "an empty mask has nothing to see"
        picture = self.picture
        if self.alpha is not None:  # transparent parts are white for the network
            picture = Image.composite(picture, Image.new("RGB", picture.size, (255, 255, 255)), self.alpha)
        return to_tensor(self.region.take(picture))[None], self.region.take_mask(self.mask)

    def encode(
        self, autoencoder: AutoencoderKL, noise: Tensor | None = None, *, channels: bool = False
    ) -> LatentCanvas:
        """Return the region in latent space; arguments as for `LatentCanvas.encode`."""
        return LatentCanvas.encode(*self.view, self.settings, autoencoder, noise, channels=channels)

    def paste(self, painted: Tensor, steps: int) -> list[Image.Image]:
        """Return the whole picture with each of `painted` inside the mask.

        Args:
            painted: (B, 3, H, W) float32 in [-1, 1], of the working size.
            steps: that were run; where a soft mask is so weak that none of them was drawn freely, the input stays.
        """
        assert self.region is not None, "an empty mask has nothing to paste"
        if self.settings.color_match:
            image, hole = self.view
            painted = match_colors(painted, image.to(painted), torch.from_numpy(hole).to(painted)[None, None])
        weights = inward_weights(self.mask > 0, self.settings.feather)
        if self.settings.mask_mode == "soft":
            seen = np.minimum(OPAQUE_FROM * self.mask.astype(np.float32) / FULL, 1.0)
            weights = np.where(self.mask.astype(np.int64) * steps >= FULL, weights * seen, 0.0)
        if self.alpha is not None and self.settings.mask_channel == "alpha":  # a hole has no old colours to fade from
            weights = np.where((np.asarray(self.alpha) == 0) & (self.mask > 0), 1.0, weights)
        return [self._pasted(picture, weights) for picture in to_pil(painted)]

    def _pasted(self, painted: Image.Image, weights: np.ndarray) -> Image.Image:
        assert self.region is not None, "an empty mask has nothing to paste"
        x0, y0, x1, y1 = self.region.box
        pixels = np.array(self.picture)
        old = pixels[y0:y1, x0:x1]
        new = np.asarray(self.region.give_back(painted)).astype(np.float32)
        mixed = np.rint(old + weights[y0:y1, x0:x1, None] * (new - old)).astype(np.uint8)
        pixels[y0:y1, x0:x1] = np.where(self.mask[y0:y1, x0:x1, None] > 0, mixed, old)
        alpha = self.alpha
        if alpha is not None and self.settings.mask_channel == "alpha":  # the holes are filled
            alpha = Image.fromarray(np.where(self.mask > 0, FULL, np.asarray(alpha)).astype(np.uint8))
        return self._finish(Image.fromarray(pixels), alpha)

    def _finish(self, picture: Image.Image, alpha: Image.Image | None) -> Image.Image:
        if alpha is not None:
            picture.putalpha(alpha)
        picture.info.pop("icc_profile", None)
        if self.profile:
            picture.info["icc_profile"] = self.profile
        return picture


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
