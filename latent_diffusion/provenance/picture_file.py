"""Write a picture with its record into a file that did not exist before, and read the record back."""

import contextlib
import io
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from latent_diffusion.data.pictures.formats import DAMAGE, check_pixels, open_picture
from latent_diffusion.data.pictures.images import MAX_PIXELS
from latent_diffusion.data.places.files import check_bytes
from latent_diffusion.errors import ConfigError, DataError, ResourceError, warn
from latent_diffusion.provenance.infotext import write_infotext
from latent_diffusion.provenance.picture_formats import LOSSY, SUFFIXES
from latent_diffusion.provenance.record import Record

__all__ = [
    "LOSSY", "SUFFIXES", "Texts", "encode_picture", "open_texts", "read_texts", "texts_of", "write_bytes",
    "write_picture",
]  # fmt: skip

JSON_KEY, TEXT_KEY = "latent_diffusion", "parameters"
EXIF_IFD, USER_COMMENT, MAKER_NOTE = 0x8769, 0x9286, 0x927C
IN_EXIF = {0x010E: "Description", 0x010F: "Make", 0x0110: "Camera", 0x0131: "Software"}  # of the main fields
UNICODE = b"UNICODE\0"  # how a comment in UTF-16 begins
OURS = b"latent_diffusion\0"  # how our maker note begins; EXIF leaves its content to the maker
MAX_EXIF = 65_000  # bytes; all of a JPEG's must fit into 65533


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
        data = encode_picture(picture, form, record)
    except ConfigError as error:
        raise ConfigError(f"{str(path)!r}: {error}; use .png") from error
    write_bytes(data, path)


def write_bytes(data: bytes, path: Path) -> None:
    """Write an encoded picture to the new file `path`, whole or not at all.

    Raises:
        ResourceError: the file exists, or the folder or disk cannot take it.
    """
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


def encode_picture(picture: Image.Image, form: str, record: Record | None = None, quality: int | None = None) -> bytes:
    """Return `picture` as the bytes of a file, with its record inside.

    Args:
        picture: RGB or RGBA.
        form: "PNG", "JPEG" or "WEBP".
        record: how it was made.
        quality: of JPEG and WebP, 0 to 100; None = 95 for JPEG, every pixel for WebP. PNG always keeps every pixel.

    Raises:
        ConfigError: such a file cannot hold the picture.
    """
    try:
        return _encode(picture, form, record, quality)
    except (OSError, ValueError, SystemError) as error:  # WebP ends at 16383 px a side, JPEG at 65535
        size = f"{picture.width}x{picture.height} px"
        raise ConfigError(f"a {form} file cannot hold this picture of {size}") from error


def _encode(picture: Image.Image, form: str, record: Record | None, quality: int | None) -> bytes:
    buffer = io.BytesIO()
    if form == "PNG":
        texts = PngInfo()
        if record:
            plain = write_infotext(record).replace("\0", "")  # a folder's name may be no valid text
            texts.add_text(TEXT_KEY, plain.encode("utf-8", "replace").decode("utf-8"))
            texts.add_text(JSON_KEY, record.to_json())
        picture.save(buffer, form, pnginfo=texts)
        return buffer.getvalue()
    exif = Image.Exif()
    if record:
        exif.get_ifd(EXIF_IFD).update(_exif_texts(record, form))
    if form == "JPEG":
        picture.convert("RGB").save(buffer, form, quality=95 if quality is None else quality, subsampling=0, exif=exif)
    elif quality is not None:
        picture.save(buffer, form, quality=quality, exif=exif)
    else:
        picture.save(buffer, form, lossless=True, exact=True, exif=exif)
    return buffer.getvalue()


def _exif_texts(record: Record, form: str) -> dict[int, bytes]:
    """Return the A1111 text, where A1111 keeps it in files without text chunks, and the exact record."""
    text, exact = write_infotext(record).encode("utf-16-be", "replace"), OURS + record.to_json().encode()
    room = MAX_EXIF - len(UNICODE) - len(text)
    if len(exact) <= room:
        return {USER_COMMENT: UNICODE + text, MAKER_NOTE: exact}
    message = f"the prompt is too long for a {form} file, which loses the exact record; use .png to keep it"
    warn(message)
    return {USER_COMMENT: UNICODE + text[-(MAX_EXIF - len(UNICODE)) :]}  # the settings stand at the end


@dataclass(frozen=True)
class Texts:
    """The content of the texts inside a picture; see the metadata of other tools in `provenance.foreign`."""

    parameters: str | None  # A1111's
    record: str | None  # ours, as JSON
    chunks: dict[str, str]  # every text by its key: of a PNG "Comment" and so on, of EXIF what `IN_EXIF` names


def open_texts(path: Path) -> Texts:
    """Read every text that the picture in `path` carries.

    Raises:
        DataError: no picture.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for without end
            raise DataError(f"{str(path)!r}: not a regular file")
        check_bytes(os.path.getsize(path), str(path))
        return texts_of(Path(path).read_bytes(), str(path))
    except FileNotFoundError as error:
        raise DataError(f"{str(path)!r}: there is no such file") from error
    except DataError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"{str(path)!r}: cannot be read: {error}") from error


def texts_of(data: bytes, name: str) -> Texts:
    """Read every text of the encoded picture `data`; `name` is what errors call it.

    Raises:
        DataError: no picture.
    """
    try:
        with open_picture(data, name=name) as picture:
            check_pixels(picture, name=name, max_pixels=MAX_PIXELS)
            picture.load()
            info, tags = dict(picture.info), picture.getexif()
            exif = tags.get_ifd(EXIF_IFD)
    except DataError:
        raise
    except DAMAGE as error:
        raise DataError(f"{name!r}: cannot be read: {error}") from error
    chunks = {key: str(value) for key, value in info.items() if isinstance(key, str) and isinstance(value, str)}
    chunks = _in_exif(tags) | chunks
    note = exif.get(MAKER_NOTE)
    record = chunks.get(JSON_KEY)
    if record is None and isinstance(note, bytes) and note.startswith(OURS):
        record = note.removeprefix(OURS).decode("utf-8", "replace")
    return Texts(chunks.get(TEXT_KEY, _comment(exif.get(USER_COMMENT))), record, chunks)


def _in_exif(tags: Mapping[int, object]) -> dict[str, str]:
    """Return the texts in a picture's main EXIF fields: ComfyUI writes "prompt:{...}" and "workflow:{...}" there."""
    texts = {name: tags.get(tag) for tag, name in IN_EXIF.items()}
    found = {name: text.rstrip("\0") for name, text in texts.items() if isinstance(text, str) and text.strip("\0")}
    for text in list(found.values()):
        key, colon, rest = text.partition(":")
        if colon and key.strip().lower() in ("prompt", "workflow"):
            found[key.strip().lower()] = rest.strip()
    return found


def _comment(value: object) -> str | None:
    """Return an EXIF comment: 8 bytes that name its encoding, then the text."""
    if isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        return None
    kind, text = value[:8], value[8:]
    if kind != UNICODE:
        return text.decode("utf-8", "replace") if kind == b"ASCII\0\0\0" else None
    # the standard leaves the byte order open; the settings at the end are Latin letters, whose high byte is 0
    end = text[-200:]
    little = end[1::2].count(0) > end[::2].count(0)
    return text.decode("utf-16-le" if little else "utf-16-be", "replace").removeprefix("\ufeff")  # byte order mark


def read_texts(path: Path) -> tuple[str | None, Record | None]:
    """Return the A1111 text and the exact record that the picture in `path` carries; None where there is none.

    Raises:
        DataError: no picture, or texts that cannot be read.
    """
    texts = open_texts(path)
    return texts.parameters, None if texts.record is None else Record.from_json(texts.record)
