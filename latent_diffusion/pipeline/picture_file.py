"""Write a picture with its record into a file that did not exist before, and read the record back."""

import contextlib
import io
import os
import secrets
import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from latent_diffusion.data.images import FORMATS
from latent_diffusion.errors import ConfigError, DataError, LatentDiffusionWarning, ResourceError
from latent_diffusion.pipeline.record import Record

__all__ = ["LOSSY", "SUFFIXES", "read_texts", "write_picture"]

SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
LOSSY = (".jpg", ".jpeg")  # WebP is written without loss
JSON_KEY, TEXT_KEY = "latent_diffusion", "parameters"
USER_COMMENT, EXIF_IFD = 0x9286, 0x8769
MAX_COMMENT = 60_000  # bytes; all of a JPEG's EXIF must fit into 65533


def write_picture(picture: Image.Image, path: Path, record: Record | None = None) -> None:
    """Write `picture` to the new file `path`, whole or not at all, with its record inside.

    Raises:
        ConfigError: a suffix that is none of `SUFFIXES`, or a picture that such a file cannot hold.
        ResourceError: the file exists, or the folder or disk cannot take it.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{str(path)!r}: cannot write {path.suffix!r} files; use {', '.join(SUFFIXES)}")
    form = SUFFIXES[path.suffix.lower()]
    try:
        data = _encode(picture, form, record)
    except (OSError, ValueError, SystemError) as error:  # WebP ends at 16383 px a side, JPEG at 65535
        size = f"{picture.width}x{picture.height} px"
        raise ConfigError(f"{str(path)!r}: a {form} file cannot hold this picture of {size}; use .png") from error
    partial = path.parent / f".partial-{secrets.token_hex(8)}"
    try:
        with open(partial, "xb") as file:
            file.write(data)
        _publish(partial, path)
    except FileExistsError as error:
        raise ResourceError(f"{str(path)!r} exists; nothing is overwritten, choose another name") from error
    except OSError as error:
        raise ResourceError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _publish(partial: Path, path: Path) -> None:
    """Give the finished file its name, unless that name is taken: a link, unlike a rename, never replaces a file."""
    try:
        os.link(partial, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(str(path)) from None
        partial.rename(path)


def _encode(picture: Image.Image, form: str, record: Record | None) -> bytes:
    buffer = io.BytesIO()
    if form == "PNG":
        texts = PngInfo()
        if record:
            plain = record.infotext().replace("\0", "")  # a folder's name may be no valid text
            texts.add_text(TEXT_KEY, plain.encode("utf-8", "replace").decode("utf-8"))
            texts.add_text(JSON_KEY, record.to_json())
        picture.save(buffer, form, pnginfo=texts)
        return buffer.getvalue()
    exif = Image.Exif()
    if record:  # these have no text chunks; A1111 keeps its text in the EXIF comment
        text = record.infotext().encode("utf-16-be", "replace")
        if len(text) > MAX_COMMENT:
            warnings.warn(f"the prompt is too long for a {form} file and is cut there", LatentDiffusionWarning, 3)
            text = text[-MAX_COMMENT:]  # the settings stand at the end
        exif.get_ifd(EXIF_IFD)[USER_COMMENT] = b"UNICODE\0" + text
    if form == "JPEG":
        picture.convert("RGB").save(buffer, form, quality=95, subsampling=0, exif=exif)
    else:
        picture.save(buffer, form, lossless=True, exact=True, exif=exif)
    return buffer.getvalue()


def read_texts(path: Path) -> tuple[str | None, Record | None]:
    """Return the A1111 text and the exact record that the picture in `path` carries; None where there is none.

    Raises:
        DataError: no picture, or texts that cannot be read.
    """
    try:
        with Image.open(path, formats=FORMATS) as picture:
            picture.load()
            info, exif = dict(picture.info), picture.getexif().get_ifd(EXIF_IFD)
    except FileNotFoundError as error:
        raise DataError(f"{str(path)!r}: there is no such file") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{str(path)!r}: not a picture of {', '.join(FORMATS)}") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{str(path)!r}: cannot be read: {error}") from error
    text = info.get(TEXT_KEY)
    comment = exif.get(USER_COMMENT)
    if text is None and isinstance(comment, bytes) and comment.startswith(b"UNICODE\0"):
        text = comment[8:].decode("utf-16-be", "replace")
    exact = info.get(JSON_KEY)
    return (text if isinstance(text, str) else None), (Record.from_json(exact) if isinstance(exact, str) else None)
