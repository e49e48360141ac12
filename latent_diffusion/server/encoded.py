"""Pictures in requests and answers: base64 or a data URL in, PNG, JPEG or WebP out."""

import base64
import binascii
import re

from PIL import Image

from latent_diffusion.data.pictures.formats import SENT
from latent_diffusion.data.pictures.images import decode_image
from latent_diffusion.errors import DataError
from latent_diffusion.server.limits import MAX_INPUT_PIXELS
from latent_diffusion.server.refusals import Refusal

__all__ = ["from_base64", "from_bytes", "to_base64"]

_DATA_URL = re.compile(r"data:image/[\w.+-]{1,40};base64,")


def from_base64(text: object, field: str) -> bytes:
    """Return the bytes of base64 text, with or without "data:image/png;base64," before it.

    Raises:
        Refusal: no text, an address (nothing is fetched), or no base64.
    """
    if not isinstance(text, str) or not text:
        raise Refusal(400, f"{field}: a picture is base64 text, found {type(text).__name__}", field)
    if re.match(r"https?:", text[:8], re.IGNORECASE):
        raise Refusal(400, f"{field}: addresses are not fetched; send the picture itself as base64", field)
    mark = _DATA_URL.match(text)
    plain = re.sub(r"\s+", "", text[mark.end() :] if mark else text)
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(400, f"{field}: not base64: {text[:20]!r}", field) from None


def from_bytes(data: bytes, field: str) -> Image.Image:
    """Return the picture in `data`, upright RGB, or RGBA where it has transparency.

    Raises:
        Refusal: no picture, damaged, or more than `MAX_INPUT_PIXELS`.
    """
    try:
        return decode_image(data, name=field, background=None, max_pixels=MAX_INPUT_PIXELS, formats=SENT)
    except DataError as error:
        raise Refusal(400, str(error).replace(" (`max_pixels`)", ""), field) from None


def to_base64(data: bytes) -> str:
    """Return bytes as base64 text."""
    return base64.b64encode(data).decode("ascii")
