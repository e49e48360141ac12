"""Read one picture into plain RGB, and turn pictures into tensors and back.

Whatever a file holds (turned by EXIF, transparent, 16-bit, palette, CMYK) leaves here as 8-bit RGB with the top of
the picture on top, or as a `DataError` that names the file. Its size is judged from the header, before
any pixel is decoded.
"""

import io
import os
import stat
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from latent_diffusion.data.pictures.arrays import from_array
from latent_diffusion.data.pictures.fitting import WHITE, fit
from latent_diffusion.data.pictures.formats import DAMAGE, FORMATS, check_pixels, open_picture
from latent_diffusion.data.places.files import check_bytes
from latent_diffusion.errors import ConfigError, DataError

__all__ = [
    "CONVERTED",
    "MAX_PIXELS",
    "ImageSource",
    "decode_image",
    "fit_square",
    "is_srgb",
    "load_image",
    "to_pil",
    "to_tensor",
    "upright_size",
]

ImageSource = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor
"""A picture to read: a file, a PIL picture, or an array as `data.pictures.arrays` reads it."""
CONVERTED = "converted_profile"
"""Where the `info` of a picture has the profile from which its colours were converted."""
ORIENTATION = 0x0112  # the EXIF tag
MAX_PIXELS = 64_000_000
"""Largest picture by default, in px: a 64 MP picture needs 192 MB decoded."""


def load_image(
    source: ImageSource,
    *,
    background: tuple[int, int, int] | None = WHITE,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """Return the picture in a file, or a PIL picture, as upright 8-bit RGB.

    Args:
        source: a file, a picture that is open already, or an array: see `data.pictures.arrays`.
        background: the colour (0..255 each) seen through transparent parts; None keeps transparency: such a picture
            comes back as RGBA with its colours as they are.
        max_pixels: refuse larger pictures, in px.

    Raises:
        ConfigError: neither a file nor a picture nor an array of one.
        DataError: absent, not a regular file, not a picture of `FORMATS`, too large or damaged.
    """
    if isinstance(source, np.ndarray | Tensor):
        source = from_array(source)
    if isinstance(source, Image.Image):
        made = _upright_rgb(source, name="the picture given", background=background, max_pixels=max_pixels)
        return made.copy() if made is source else made
    if not isinstance(source, str | os.PathLike):
        raise ConfigError(f"a picture is a file, a PIL picture, or a numpy or torch array, not {source!r:.60}")
    path = Path(source)
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):  # a FIFO would hang, a device would never end
            raise DataError(f"{str(path)!r}: not a regular file")
        check_bytes(facts.st_size, str(path))
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        why = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{str(path)!r}: cannot be read: {why}") from error
    return decode_image(data, name=str(path), background=background, max_pixels=max_pixels)


def decode_image(
    data: bytes,
    *,
    name: str,
    background: tuple[int, int, int] | None = WHITE,
    max_pixels: int = MAX_PIXELS,
    to_srgb: bool = False,
    reduction: int = 1,
    formats: tuple[str, ...] = FORMATS,
) -> Image.Image:
    """Return the picture encoded in `data` as upright 8-bit RGB.

    Args:
        data: what the file holds.
        name: what errors call it.
        background: as in `load_image`.
        max_pixels: as in `load_image`.
        to_srgb: convert the colours of a picture with a profile to sRGB; a broken profile is passed over.
        reduction: 2, 4 or 8 decodes a JPEG whose sides it divides at 1/2, 1/4 or 1/8 of them, from the low frequencies
            of its cosine transform: quicker, but not the bits of the whole picture scaled down.
        formats: of `FORMATS`, those that are read.

    Raises:
        DataError: as `load_image`.
    """
    picture = open_picture(data, name=name, formats=formats)
    with picture:
        if picture.format == "PNG" and not _png_ends(data):  # Pillow does not miss it
            raise DataError(f"{name!r}: damaged: the file ends before the picture does")
        return _upright_rgb(
            picture, name=name, background=background, max_pixels=max_pixels, to_srgb=to_srgb, reduction=reduction
        )


def upright_size(data: bytes, *, name: str) -> tuple[int, int]:
    """Return width and height in px of an encoded picture as it is shown, from its header alone.

    Raises:
        DataError: not a picture of `FORMATS`.
    """
    with open_picture(data, name=name) as picture:
        width, height = picture.size
        turned = picture.format != "TIFF" and picture.getexif().get(ORIENTATION, 1) >= 5  # Pillow turns a TIFF's size
    return (height, width) if turned else (width, height)


def _png_ends(data: bytes) -> bool:
    """Return whether the chunks of a PNG lead to its end; what follows that is no part of it."""
    place = 8
    while place + 8 <= len(data):
        if data[place + 4 : place + 8] == b"IEND":
            return place + 12 <= len(data)
        place += 12 + int.from_bytes(data[place : place + 4], "big")
    return False


def _upright_rgb(
    picture: Image.Image,
    *,
    name: str,
    background: tuple[int, int, int] | None,
    max_pixels: int,
    to_srgb: bool = False,
    reduction: int = 1,
) -> Image.Image:
    """Return a picture as upright 8-bit RGB; it is the given one, not a copy, where nothing is to be changed."""
    check_pixels(picture, name=name, max_pixels=max_pixels)
    width, height = picture.size
    if reduction > 1 and width % reduction == height % reduction == 0:
        picture.draft(None, (width // reduction, height // reduction))  # other formats have no such way
    try:
        picture.load()
        if picture.getexif().get(ORIENTATION, 1) != 1:  # Pillow copies what is upright already
            picture = ImageOps.exif_transpose(picture)
    except DAMAGE as error:
        raise DataError(f"{name!r}: damaged: {error}") from error
    profile = picture.info.get("icc_profile")
    if to_srgb and profile and not is_srgb(profile):
        picture = _in_srgb(picture)
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        picture = _eight_bit(picture, name)
    if picture.mode in ("F", "LAB"):
        what = "float pixels have no defined white" if picture.mode == "F" else "pixels are CIE Lab"
        raise DataError(f"{name!r}: {what}; convert it to 8-bit RGB")
    if "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        picture = picture.convert("RGBA")
        if background is None:
            return picture
        flat = Image.new("RGBA", picture.size, (*background, 255))
        picture = Image.alpha_composite(flat, picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def is_srgb(profile: bytes) -> bool:
    """Return whether a colour profile names sRGB."""
    return any(word in profile for word in (b"sRGB", "sRGB".encode("utf-16-be")))


def _in_srgb(picture: Image.Image) -> Image.Image:
    """Return a picture with its colours converted from its profile to sRGB; as it is where the profile is broken.

    Transparency is kept. Reference: ICC.1:2022, relative colorimetric intent with black point compensation.
    """
    opacity = picture.getchannel("A") if picture.mode in ("RGBA", "LA") else None
    bare = picture if opacity is None else picture.convert("RGB" if picture.mode == "RGBA" else "L")
    if bare.mode not in ("RGB", "L", "CMYK"):  # palettes and 16 bits: converted by no profile of their mode
        return picture
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(picture.info["icc_profile"]))
        made = ImageCms.profileToProfile(
            bare, profile, ImageCms.createProfile("sRGB"), ImageCms.Intent.RELATIVE_COLORIMETRIC, "RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )  # fmt: skip
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return picture
    assert made is not None, "not converted in place"
    made.info[CONVERTED] = picture.info["icc_profile"]
    made.info.pop("icc_profile", None)
    if opacity is not None:
        made.putalpha(opacity)
    return made


def _eight_bit(picture: Image.Image, name: str) -> Image.Image:
    """Scale 16-bit grey 0..65535 to 0..255; PIL's own conversion clips at 255 and turns such pictures white."""
    values = np.asarray(picture).astype(np.float64)
    if values.min() < 0 or values.max() > 65535:
        raise DataError(f"{name!r}: 32-bit grey values up to {values.max():.0f} have no defined white")
    return Image.fromarray(np.rint(values / 257).astype(np.uint8))


def fit_square(picture: Image.Image, size: int, *, pad: bool = False) -> Image.Image:
    """Return an RGB picture scaled to size x size px: its centre square, or all of it with white borders (`pad`)."""
    return fit(picture, (size, size), pad=pad).picture


def to_tensor(picture: Image.Image) -> Tensor:
    """Return an RGB picture as (3, H, W) float32 in [-1, 1]."""
    pixels = torch.from_numpy(np.array(picture.convert("RGB")))
    return pixels.permute(2, 0, 1).float() / 127.5 - 1


def to_pil(images: Tensor) -> list[Image.Image]:
    """Return (B, 3, H, W) float in [-1, 1] as B RGB pictures; values outside are clipped, halves round to even."""
    pixels = ((images.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(p.numpy()) for p in pixels.permute(0, 2, 3, 1).contiguous()]
