"""Every picture of a run decoded once before training: what is wrong with it, how large it is, its pixels if they fit.

Threads decode several at a time; what is found is put together in order of the rows.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from latent_diffusion.data.ahead import ahead
from latent_diffusion.data.opening import Part
from latent_diffusion.data.pictures.fitting import Size, fit, reduction
from latent_diffusion.data.pictures.images import decode_image, upright_size
from latent_diffusion.data.pictures.oddities import Look, Oddities, look
from latent_diffusion.data.places.stalled import StalledRead
from latent_diffusion.data.settings import DataConfig
from latent_diffusion.data.tensor_cache import TensorCache, key_of
from latent_diffusion.errors import DataError

__all__ = ["Checked", "check_pictures", "decode_row", "digest_of"]

logger = logging.getLogger(__name__)
AHEAD = 64  # pictures that are decoded before their turn

Target = Callable[[Part, Size], Size]
"""The size at which a picture of a stored size is trained."""


@dataclass
class Checked:
    """What is known of the pictures that can be used, in order.

    Attributes:
        sizes: widths and heights as stored, upright, (N, 2) int32, in px.
        content: a digest of each picture's file.
        pixels: all pictures at their sizes, one after the other, (H, W, 3) each, uint8; None where they do not fit.
        digest: of all pictures, captions and filters.
    """

    sizes: np.ndarray
    content: list[bytes]
    pixels: Tensor | None
    digest: str


@dataclass(frozen=True)
class Good:
    """One picture."""

    size: Size
    look: Look
    pixels: np.ndarray | None


def digest_of(data: bytes) -> bytes:
    """Return the digest of a picture's file."""
    return hashlib.blake2b(data).digest()


def decode_row(
    part: Part, k: int, data: bytes, config: DataConfig, target: Target | None = None
) -> tuple[Image.Image, Size]:
    """Return row k of a part's source, upright, and the size at which it is stored.

    Args:
        part: the source and its settings.
        k: the row.
        data: its picture file.
        config: what is allowed.
        target: the size at which the picture is trained; with `decode: fast` the picture is reduced towards it.

    Raises:
        DataError: not a picture, damaged, too small or too large.
    """
    name = part.source.name(k)
    where, divisor, size = f"{part.source.where}/{name}", 1, None
    if target is not None and config.decode == "fast":
        size = upright_size(data, name=where)
        divisor = reduction(size, target(part, size), pad=part.config.fit == "pad")
    picture = decode_image(
        data,
        name=where,
        background=config.background,
        max_pixels=config.max_pixels,
        to_srgb=True,
        reduction=divisor,
    )
    size = size or picture.size
    if min(size) < config.min_side:
        raise DataError(f"{name!r}: {size[0]}x{size[1]} px, but the smallest side must be {config.min_side} px")
    return picture, size


def check_pictures(
    parts: Sequence[Part], config: DataConfig, target: Target, known: TensorCache | None = None
) -> Checked:
    """Decode every kept row of all parts; bad ones are taken out of `kept` where that is allowed.

    Args:
        parts: the sources.
        config: what is allowed.
        target: the size at which a picture is trained.
        known: cache of what was found before, by the content of the file; such pictures are read, not decoded.

    Raises:
        DataError: a picture cannot be used, or too many cannot.
    """
    keep = config.cache_bytes > 0 and config.cache is None and all(part.config.fit != "random_crop" for part in parts)
    total = sum(len(part.kept) for part in parts)
    found, bad = _Found(keep, config, known), []
    for part in parts:
        stays = np.ones(len(part.kept), bool)
        for place, result in enumerate(_decoded(part, config, target, found)):
            if isinstance(result, DataError):
                bad.append(str(result))
                stays[place] = False
            else:
                found.add(part, int(part.kept[place]), result)
        part.kept = part.kept[stays]
    where = list(dict.fromkeys(part.source.where for part in parts))
    if bad:
        _judge(bad, total, config, ", ".join(map(repr, where)))
        if empty := [part.source.where for part in parts if not len(part.kept)]:
            raise DataError(f"no picture of {empty[0]!r} can be used")
    if known is not None:
        known.flush()
    for line in found.odd.lines():
        logger.warning("%s: %s", ", ".join(where), line)
    return found.checked()


def _decoded(part: Part, config: DataConfig, target: Target, found: "_Found") -> Iterator[Good | DataError]:
    def one(k: int) -> Good | DataError:
        try:
            data = part.read(k)
            before = None if found.known is None else found.known.get(_facts_key(digest_of(data), config))
            if before is not None:
                width, height, *odd = before.tolist()
                return Good((width, height), Look(digest_of(data), *map(bool, odd)), None)
            picture, own = decode_row(part, k, data, config, target)
        except StalledRead:
            raise
        except DataError as error:
            return error
        facts = look(part.source.name(k), data, picture)
        if not found.keep:
            return Good(own, facts, None)
        size, pad = target(part, own), part.config.fit == "pad"
        return Good(own, facts, np.array(fit(picture, size, pad=pad, background=config.background).picture))

    return ahead(one, map(int, part.kept), min(8, os.cpu_count() or 1), AHEAD)


@dataclass
class _Found:
    """What is put together, picture by picture."""

    keep: bool
    config: DataConfig
    known: TensorCache | None
    odd: Oddities = field(default_factory=Oddities)
    sizes: list[Size] = field(default_factory=list)
    content: list[bytes] = field(default_factory=list)
    pixels: list[np.ndarray] = field(default_factory=list)
    held: int = 0
    digest: Any = field(  # a running hash
        default_factory=lambda: hashlib.blake2b(digest_size=16)
    )

    def add(self, part: Part, k: int, good: Good) -> None:
        row = part.source.row(k)
        self.digest.update(json.dumps(row, sort_keys=True, default=str).encode() + good.look.content)
        self.odd.note(str(row["file_name"]), good.look)
        if self.known is not None and (key := _facts_key(good.look.content, self.config)) not in self.known:
            facts = [*good.size, good.look.misnamed, good.look.moving, good.look.profiled]
            self.known.put(key, torch.tensor(facts, dtype=torch.int32))
        self.sizes.append(good.size)
        self.content.append(good.look.content)
        if self.keep and good.pixels is not None:
            self.pixels.append(good.pixels)
            self.held += good.pixels.nbytes
            if self.held > self.config.cache_bytes:
                self.keep = False
                self.pixels.clear()

    def checked(self) -> Checked:
        flat = np.concatenate([array.reshape(-1) for array in self.pixels]) if self.keep and self.pixels else None
        pixels = None if flat is None else torch.from_numpy(flat)
        return Checked(np.array(self.sizes, np.int32).reshape(-1, 2), self.content, pixels, self.digest.hexdigest())


def _facts_key(content: bytes, config: DataConfig) -> str:
    """Return the key of what is known of a picture that was decoded within these limits."""
    return key_of("facts 1", content, config.min_side, config.max_pixels)


def _judge(bad: list[str], total: int, config: DataConfig, names: str) -> None:
    """Stop, or report what is left out."""
    told = f"{len(bad)} of {total} pictures of {names} cannot be used: " + "; ".join(bad[:10])
    if config.on_bad == "error":
        raise DataError(f"{told}; repair or remove them, or set data.on_bad=skip")
    if len(bad) > config.max_bad * total or len(bad) == total:
        raise DataError(
            f"{told}; that is more than data.max_bad={config.max_bad}; repair them, or set data.max_bad "
            f"to at least {len(bad) / total:.2g}"
        )
    logger.warning("left out: %s", told)
