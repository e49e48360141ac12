"""Formats of pictures that are read, and a picture opened with nothing of it decoded.

A file is judged by its bytes, never by its ending. Formats beyond these (EPS, PDF, PSD, ICO, ...) have parsers that are
not needed here.
"""

import io
import re
import struct
import warnings
import zlib
from importlib.util import find_spec
from types import MappingProxyType

from PIL import Image

from latent_diffusion.errors import DataError

__all__ = [
    "BEGINNINGS",
    "FORMATS",
    "PICTURES",
    "SENT",
    "UNREAD",
    "check_pixels",
    "is_sequence",
    "named",
    "open_picture",
]

SENT = ("JPEG", "PNG", "WEBP", "BMP")
"""Formats that are read from anyone, over HTTP."""
FORMATS = (*SENT, "TIFF", "AVIF", "HEIC")
"""Formats that are read from files. HEIC needs the extra `heic`."""
BEGINNINGS = MappingProxyType({
    (".jpg", ".jpeg", ".jfif"): re.compile(rb"\xff\xd8"),
    (".png",): re.compile(rb"\x89PNG"),
    (".webp",): re.compile(rb"RIFF"),
    (".bmp",): re.compile(rb"BM"),
    (".tif", ".tiff"): re.compile(rb"II[*+]\0|MM\0[*+]"),
    (".avif",): re.compile(rb"(?s:.{4})ftyp"),
    (".heic", ".heif"): re.compile(rb"(?s:.{4})ftyp"),
})  # fmt: skip
"""Endings -> how a file of that format begins."""
_HEIC = (".heic", ".heif")
_ABLE = find_spec("pillow_heif") is not None
PICTURES = tuple(end for ends in BEGINNINGS for end in ends if end not in _HEIC or _ABLE)
"""Endings of the pictures of a data set."""
UNREAD = (".gif", ".jxl", ".jp2", ".svg", ".psd", ".ico", ".raw", ".dng", *(() if _ABLE else _HEIC))
"""Endings of pictures that are not read: a data set counts them."""
DAMAGE = (OSError, ValueError, SyntaxError, RuntimeError, EOFError, struct.error, zlib.error)
"""Errors that Pillow and its plugins raise for damaged pictures."""
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"}
_TILE_SIDES = (322, 323)  # the tags of TIFF
_LOOKS = {
    b"<!doc": "an HTML page", b"<html": "an HTML page", b"<?xml": "an XML file", b"<svg": "an SVG drawing",
    b"%pdf": "a PDF document", b"%!ps": "a PostScript file", b"gif8": "a GIF",
    b"ii*\0": "a TIFF that is damaged or of a kind that is not read",
    b"mm\0*": "a TIFF that is damaged or of a kind that is not read",
    b"8bps": "a Photoshop file", b"pk\3\4": "a zip archive", b"versi": "a Git LFS pointer",
}  # fmt: skip


def open_picture(data: bytes, *, name: str, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Return the picture encoded in `data`, with its size from the header and no pixel decoded.

    Args:
        data: what the file holds.
        name: what errors call it.
        formats: of `FORMATS`.

    Raises:
        DataError: no picture of `formats`, or of a size that Pillow takes for a bomb.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own cap on pixels is lower and is an error; damage is one too
            picture = _heic(data, name) if "HEIC" in formats and _brands(data) & _HEIC_BRANDS else None
            picture = picture or Image.open(io.BytesIO(data), formats=[form for form in formats if form != "HEIC"])
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{name!r}: too large: {error}") from error
    except DAMAGE as error:
        raise DataError(f"{name!r}: not a picture of {', '.join(formats)}, but {_look(data, formats)}") from error
    return picture


def check_pixels(picture: Image.Image, *, name: str, max_pixels: int) -> None:
    """Check the size of a picture, and of the tiles of a TIFF, before a pixel is decoded.

    Raises:
        DataError: more than `max_pixels` px.
    """
    width, height = picture.size
    if width * height > max_pixels:
        raise DataError(
            f"{name!r}: {width}x{height} px is over the limit of {max_pixels} px (`max_pixels`); scale it down"
        )
    tags = getattr(picture, "tag_v2", {})
    tile = [side for side in map(tags.get, _TILE_SIDES) if isinstance(side, int)]
    if len(tile) == 2 and tile[0] * tile[1] > max_pixels:  # each is decoded whole, however small the picture
        raise DataError(f"{name!r}: its tiles of {tile[0]}x{tile[1]} px are over the limit of {max_pixels} px")


def _heic(data: bytes, name: str) -> Image.Image:
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise DataError(
            f"{name!r}: a HEIC picture; `pip install 'latent_diffusion[heic]'`, or save it as JPEG or PNG"
        ) from error
    return HeifImageFile(io.BytesIO(data))


def _brands(data: bytes) -> set[bytes]:
    """Return the brands of a file of boxes (ISO/IEC 14496-12), major and compatible; of others none."""
    end = min(int.from_bytes(data[:4], "big"), 256)
    return {data[8:12], *(data[k : k + 4] for k in range(16, end, 4))} if data[4:8] == b"ftyp" else set()


def is_sequence(data: bytes) -> bool:
    """Return whether an encoded picture has frames or pages behind the first."""
    if data[:4] in (b"II*\0", b"MM\0*"):
        order = "<" if data[:1] == b"I" else ">"
        try:  # TIFF 6.0, section 2: the fields of a page, then the place of the next one
            (place,) = struct.unpack_from(f"{order}I", data, 4)
            (fields,) = struct.unpack_from(f"{order}H", data, place)
            return struct.unpack_from(f"{order}I", data, place + 2 + 12 * fields) != (0,)
        except struct.error:
            return False
    # chunks and brands that only moving ones have
    webp = data[12:16] == b"VP8X" and bool(data[20] & 2)
    return webp or b"acTL" in data[:4096] or data[4:12] == b"ftypavis"


def named(formats: tuple[str, ...] = FORMATS) -> str:
    """Return the names of formats for a sentence: "JPEG, PNG or WEBP"."""
    return f"{', '.join(formats[:-1])} or {formats[-1]}"


def _look(data: bytes, formats: tuple[str, ...]) -> str:
    """Say in words what bytes that are no picture of `formats` look like."""
    if not data:
        return "an empty file"
    head = data[:5].lower()
    for start, words in _LOOKS.items():
        if head.startswith(start):
            return words if "TIFF" in formats or "TIFF" not in words else "a TIFF"
    if brands := _brands(data):
        kind = "HEIC" if brands & _HEIC_BRANDS else "AVIF" if brands & {b"avif", b"avis"} else "HEIC, AVIF or video"
        return f"a {kind} file{' that is damaged' if kind in formats else ''}; save it as JPEG or PNG"
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in data[:64]):
        return f"text starting {data[:16]!r}"
    return f"{len(data)} bytes starting {data[:8]!r}"
