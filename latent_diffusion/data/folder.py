"""A folder or zip of captioned pictures, as an endless, seekable stream of samples.

Sample n is a pure function of (seed, n): epoch n // N goes through all N pictures in an order of its own, and the
caption, its dropout and the flip have a key with n. So a run resumes anywhere in O(1), and any number of processes
that share out the numbers of one global batch see the same samples.

Every picture is decoded once before training (so a bad one is named before the first step), scaled, and kept as
bytes in memory when all fit under `cache_bytes`; otherwise it is decoded again when its turn comes.
"""

import hashlib
import json
import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from latent_diffusion.config import Section
from latent_diffusion.data.images import MAX_PIXELS, crop_corner, decode_image, fit_square
from latent_diffusion.data.metadata import LOOKED_FOR, Row, captions_of, endings, read_rows, values_of
from latent_diffusion.data.oddities import Oddities
from latent_diffusion.data.source import open_source
from latent_diffusion.errors import ConfigError, DataError
from latent_diffusion.randomness import generator, permutation, uniform
from latent_diffusion.registry import nearest

__all__ = ["DataConfig", "ImageFolder", "Sample"]

logger = logging.getLogger(__name__)


class DataConfig(Section):
    """What to train on: the `data:` section of a run."""

    path: str
    """An image folder, or a .zip of one; relative to where the command runs."""
    size: int = Field(gt=0)
    """Side of the training pictures, in px."""
    fit: Literal["crop", "pad"] = "crop"
    """Pictures that are not square: take the centre square, or all of it with white borders."""
    where: dict[str, str | list[str]] = Field(default_factory=dict)
    """Keep rows whose metadata field has (one of) these values, for example `{split: train}`."""
    where_not: dict[str, str | list[str]] = Field(default_factory=dict)
    """Leave out rows whose metadata field has (one of) these values."""
    captions: list[str] = Field(default_factory=lambda: ["text"])
    """Metadata fields with captions: one field, then one of its texts, is drawn for every sample. [] = no captions."""
    missing_captions: Literal["error", "empty"] = "error"
    """A row without any caption: an error, or the empty prompt."""
    caption_dropout: float = Field(default=0.0, ge=0, le=1)
    """Share of samples that get the empty prompt, the one guidance is measured against when sampling."""
    flip: bool = False
    """Mirror half of the samples left to right."""
    on_bad: Literal["error", "skip"] = "error"
    """A picture that cannot be read: stop before training, or go on without it (at most `max_bad` of all)."""
    max_bad: float = Field(default=0.01, ge=0, le=1)
    """Largest share of pictures that `on_bad: skip` leaves out."""
    min_side: int = Field(default=16, gt=0)
    """Smallest side of a picture, in px, as stored."""
    max_pixels: int = Field(default=MAX_PIXELS, gt=0)
    """Largest picture, in px, as stored."""
    cache_bytes: int = Field(default=2**30, ge=0)
    """Keep scaled pictures in memory up to this many bytes."""


@dataclass(frozen=True)
class Sample:
    """One training picture with all its draws made.

    `image` is (3, size, size) uint8, or None if it was not requested; `number` is n; `row` is the picture's index in
    the data set; `size_ids` is as in `Conditioning`.
    """

    number: int
    row: int
    flipped: bool
    image: Tensor | None
    caption: str
    size_ids: tuple[int, ...]


class ImageFolder:
    """The samples of a data set; `digest` changes with any picture, caption or filter.

    Args:
        config: what to read.
        seed: the run's seed; all draws are keyed with it.

    Raises:
        ConfigError: a filter or caption field that no row has.
        DataError: pictures or captions are missing or broken, or none is left.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        self.config = config
        self.seed = seed
        self._source = open_source(config.path)
        rows = read_rows(self._source, config.path)
        if not rows:
            held = endings(self._source.names())
            raise DataError(
                f"data set {config.path!r} has 0 pictures (JPEG, PNG, WebP or BMP) and no table; "
                f"it holds {held or 'no file'}; looked for {LOOKED_FOR}"
            )
        rows = self._chosen(rows)
        self._check_captions(rows)
        self.sizes: list[tuple[int, int]] = []  # height and width of each picture as stored, in px
        self.rows, self._cache = self._scan(rows)
        self.captions = [self._captions(row) for row in self.rows]
        self._order = lru_cache(maxsize=2)(lambda epoch: permutation(seed, "order", epoch, len(self.rows)))

    def __len__(self) -> int:
        """Return the number of pictures N."""
        return len(self.rows)

    def _chosen(self, rows: list[Row]) -> list[Row]:
        fields = {field for row in rows for field in row}
        asked = [*self.config.where, *self.config.where_not, *self.config.captions]
        for field in asked:
            if field not in fields and not (field in self.config.captions and self.config.missing_captions == "empty"):
                why = f"{nearest(field, fields)}; fields are {sorted(fields)}"
                if fields == {"file_name"}:
                    why = f": there are no captions; looked for {LOOKED_FOR}"
                raise ConfigError(f"no row of {self.config.path!r} has a field {field!r}{why}")
        kept = rows
        steps = [f"{len(rows)} rows"]
        for filters, wanted in ((self.config.where, True), (self.config.where_not, False)):
            for field, values in filters.items():
                allowed = {values} if isinstance(values, str) else set(values)
                kept = [row for row in kept if bool(values_of(row, field) & allowed) is wanted]
                steps.append(f"{len(kept)} after {field} {'in' if wanted else 'not in'} {sorted(allowed)}")
        if not kept:
            raise DataError(f"no picture of {self.config.path!r} is left: {', '.join(steps)}")
        return kept

    def _captions(self, row: Row) -> list[list[str]]:
        """Return the captions of each field that has some; [[""]] when the data set is used without captions."""
        found = [texts for field in self.config.captions if (texts := captions_of(row, field))]
        return found or [[""]]

    def _check_captions(self, rows: list[Row]) -> None:
        """Refuse rows without a caption where each must have one; count them where they may have none."""
        fields = self.config.captions
        missing = [str(row["file_name"]) for row in rows if fields and self._captions(row) == [[""]]]
        if not missing:
            return
        told = f"{len(missing)} of {len(rows)} pictures of {self.config.path!r} have no caption in {fields}: "
        told += ", ".join(map(repr, missing[:10])) + (", ..." if len(missing) > 10 else "")
        if self.config.missing_captions == "error":
            raise DataError(f"{told}; write them, or set data.missing_captions=empty")
        logger.warning("%s; they get the empty prompt", told)

    def _scan(self, rows: list[Row]) -> tuple[list[Row], Tensor | None]:
        """Decode every picture once; return the good rows and their pixels (N, 3, size, size) uint8, if they fit."""
        size = self.config.size
        fits = len(rows) * 3 * size * size <= self.config.cache_bytes
        cache = torch.empty((len(rows) if fits else 0, 3, size, size), dtype=torch.uint8)
        digest = hashlib.blake2b(digest_size=16)
        good: list[Row] = []
        bad: list[str] = []
        odd = Oddities()
        for row in rows:
            try:
                data = self._source.read(str(row["file_name"]))
                picture = self._decode(row, data)
            except DataError as error:
                bad.append(str(error))
                continue
            content = hashlib.blake2b(data).digest()
            digest.update(json.dumps(row, sort_keys=True).encode() + content)
            odd.note(str(row["file_name"]), data, picture)
            if fits:
                cache[len(good)] = self._fitted(picture)
            good.append(row)
            self.sizes.append((picture.height, picture.width))
        if bad:
            told = f"{len(bad)} of {len(rows)} pictures of {self.config.path!r} cannot be used: " + "; ".join(bad[:10])
            if self.config.on_bad == "error":
                raise DataError(f"{told}; repair or remove them, or set data.on_bad=skip")
            if len(bad) > self.config.max_bad * len(rows) or not good:
                raise DataError(
                    f"{told}; that is more than data.max_bad={self.config.max_bad}; repair them, or set data.max_bad "
                    f"to at least {len(bad) / len(rows):.2g}"
                )
            logger.warning("left out: %s", told)
        for line in odd.lines():
            logger.warning("%s: %s", self.config.path, line)
        self.digest = digest.hexdigest()
        return good, cache[: len(good)] if fits else None

    def _decode(self, row: Row, data: bytes) -> Image.Image:
        """Return one picture as it is stored."""
        name = str(row["file_name"])
        picture = decode_image(data, name=f"{self.config.path}/{name}", max_pixels=self.config.max_pixels)
        if min(picture.size) < self.config.min_side:
            width, height = picture.size
            raise DataError(f"{name!r}: {width}x{height} px, but the smallest side must be {self.config.min_side} px")
        return picture

    def _fitted(self, picture: Image.Image) -> Tensor:
        """Return one picture as (3, size, size) uint8."""
        picture = fit_square(picture, self.config.size, pad=self.config.fit == "pad")
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)

    def image(self, row: int) -> Tensor:
        """Return the picture of a row as (3, size, size) uint8."""
        if self._cache is not None:
            return self._cache[row]
        return self._fitted(self._decode(self.rows[row], self._source.read(str(self.rows[row]["file_name"]))))

    def row_of(self, number: int) -> int:
        """Return which picture sample `number` shows."""
        epoch, position = divmod(number, len(self.rows))
        return int(self._order(epoch)[position])

    def caption_of(self, number: int, row: int) -> str:
        """Return the caption sample `number` has; "" when it is dropped."""
        dropout = self.config.caption_dropout
        if dropout > 0 and uniform(self.seed, "caption dropout", number) < dropout:
            return ""
        fields = self.captions[row]
        if len(fields) == 1 and len(fields[0]) == 1:
            return fields[0][0]
        draw = generator(self.seed, "caption", number)
        texts = fields[int(draw.integers(len(fields)))]
        return texts[int(draw.integers(len(texts)))]

    def size_ids(self, row: int) -> tuple[int, ...]:
        """Return height and width of the stored picture, top and left of its crop, height and width trained at: px.

        Reference: Podell et al. 2023, arXiv:2307.01952, section 2.2.
        """
        size = self.config.size
        corner = (0, 0) if self.config.fit == "pad" else crop_corner(*self.sizes[row], size)
        return (*self.sizes[row], *corner, size, size)

    def sample(self, number: int, *, pixels: bool = True) -> Sample:
        """Return sample n of the run, n = 0, 1, 2, ... without end; without `pixels` no picture is read."""
        row = self.row_of(number)
        flipped = self.config.flip and uniform(self.seed, "flip", number) < 0.5
        image = self.image(row) if pixels else None
        if image is not None and flipped:
            image = image.flip(-1)
        return Sample(number, row, flipped, image, self.caption_of(number, row), self.size_ids(row))
