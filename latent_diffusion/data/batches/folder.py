"""Captioned pictures of one source or several, as an endless, seekable stream of samples.

Sample n is a pure function of (seed, n): a pass goes through all pictures in an order of its own (`data/order.py`),
and the caption, its changes and its dropout, the flip and the crop have a key with n. So a run resumes anywhere in
O(1), and any number of processes that share out the numbers of one global batch see the same samples.

Every picture is decoded once before training (so a bad one is named before the first step), scaled, and kept as
bytes in memory when all fit under `cache_bytes`; otherwise, or with `check: none`, it is decoded when its turn comes.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from latent_diffusion.data.buckets import BucketRow, crop_loss
from latent_diffusion.data.checks.checking import check_pictures, decode_row, digest_of
from latent_diffusion.data.opening import Part, check_captions, open_parts
from latent_diffusion.data.order import EMPTY, Group, Order
from latent_diffusion.data.pictures.fitting import Size, corner, fit
from latent_diffusion.data.pictures.images import decode_image, upright_size
from latent_diffusion.data.rows.table import Row
from latent_diffusion.data.settings import DataConfig, HeldOut
from latent_diffusion.data.tensor_cache import open_cache
from latent_diffusion.randomness import generator, uniform

__all__ = ["CENTRE", "DataConfig", "ImageFolder", "Sample", "open_pictures"]

CENTRE = (0.5, 0.5)


@dataclass(frozen=True)
class Sample:
    """One training picture with all its draws made.

    `image` is (3, H, W) uint8, or None if it was not requested; `number` is n; `row` is the picture's index in the data
    set; `size_ids` are height and width as stored (upright), top and left of the crop in px of the scaled picture, and
    height and width of the sample; `weight` is the factor of its loss.
    """

    number: int
    row: int
    flipped: bool
    image: Tensor | None
    caption: str
    size_ids: tuple[int, ...]
    weight: float = 1.0


class View(Sequence[Any]):
    """A value for every row of a data set, made when it is asked for."""

    def __init__(self, length: int, make: Callable[[int], Any]) -> None:
        self._length, self._make = length, make

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, row: int) -> Any: ...
    @overload
    def __getitem__(self, row: slice) -> list[Any]: ...
    def __getitem__(self, row: int | slice) -> Any:
        if isinstance(row, slice):
            return [self._make(k) for k in range(*row.indices(self._length))]
        if not -self._length <= row < self._length:
            raise IndexError(row)
        return self._make(row % self._length)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __repr__(self) -> str:
        return repr(list(self))


class ImageFolder:
    """The samples of a data set; `digest` changes with any picture, caption or filter.

    Args:
        config: what to read.
        seed: the run's seed; all draws are keyed with it.
        batch: pictures of a batch over all processes; with buckets each batch has one size.

    Raises:
        ConfigError: a filter or caption field that no row has.
        DataError: pictures or captions are missing or broken, or none is left.
    """

    def __init__(self, config: DataConfig, seed: int, batch: int = 1) -> None:
        self.config = config
        self.seed = seed
        self.parts = open_parts(config, seed)
        self._cache: Tensor | None = None
        self._content: dict[int, bytes] = {}  # digests of picture files, as far as they were read
        if config.check == "all":
            check_captions(self.parts)
            self._scan()
        else:
            self._trust()
        self._starts = np.cumsum([0, *(len(part.kept) for part in self.parts)])
        self.rows: Sequence[Row] = View(len(self), self._row)
        self.captions: Sequence[list[list[str]]] = View(len(self), self._texts)
        self._fitted = self._assign()
        self._offsets = np.cumsum([0, *(3 * width * height for width, height in self._fitted or [])])
        self.order = Order(seed, self._groups(), batch if config.buckets is not None else None)

    def __len__(self) -> int:
        """Return the number of pictures N."""
        return sum(len(part.kept) for part in self.parts)

    @property
    def pass_length(self) -> int:
        """Sample numbers of a pass, those of smaller last batches that have no picture included."""
        return self.order.length

    @property
    def one_size(self) -> bool:
        """Whether all samples have the size `config.size`."""
        return self.config.buckets is None

    @property
    def random_crops(self) -> bool:
        """Whether what is shown of a picture is drawn for every sample."""
        return any(part.config.fit == "random_crop" for part in self.parts)

    def flips(self, row: int) -> bool:
        """Return whether half of a row's samples are mirrored."""
        return self.place(row)[0].config.flip

    def place(self, row: int) -> tuple[Part, int]:
        """Return the part that a row of the data set is in, and its row in the part's source."""
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.parts[part], int(self.parts[part].kept[row - self._starts[part]])

    def _row(self, row: int) -> Row:
        part, k = self.place(row)
        return part.source.row(k)

    def _texts(self, row: int) -> list[list[str]]:
        """Return the captions of each field that has some; [[""]] where there is none."""
        part, k = self.place(row)
        return list(part.captions.fields(part.source.row(k)).values()) or [[""]]

    # opening

    def _scan(self) -> None:
        """Decode every picture once."""
        checked = check_pictures(self.parts, self.config, self._target, open_cache(self.config.cache))
        self._sizes, self._content, self._cache = checked.sizes, dict(enumerate(checked.content)), checked.pixels
        self.digest = checked.digest

    def _trust(self) -> None:
        """Take the pictures unseen; with buckets their sizes are read from the headers."""
        digest = hashlib.blake2b(digest_size=16)
        for part in self.parts:
            digest.update(part.identity())
            digest.update(part.kept.tobytes())
        self.digest = digest.hexdigest()
        self._sizes = np.zeros((len(self), 2), np.int32)  # 0: not known yet
        if self.config.buckets is not None:
            sizes = [self._header(part, int(k)) for part in self.parts for k in part.kept]
            self._sizes = np.array(sizes, np.int32).reshape(-1, 2)

    def _header(self, part: Part, k: int) -> Size:
        return upright_size(part.read(k), name=part.name(k))

    # sizes and order

    def _target(self, part: Part, size: Size) -> Size:
        """Return the size (width, height) at which a picture of this size is trained."""
        if part.buckets is None:
            return self.config.size, self.config.size
        return part.buckets.of(np.array([size]))[0]

    def _assign(self) -> list[Size] | None:
        """Return the size at which each picture is trained; None where all are squares."""
        if self.config.buckets is None:
            return None
        found: list[Size] = []
        for part, start, end in zip(self.parts, self._starts, self._starts[1:]):
            assert part.buckets is not None, "every part has them, or none"
            found += part.buckets.of(self._sizes[start:end])
        return found

    def _groups(self) -> list[Group]:
        groups: list[Group] = []
        distinct = sorted(set(self._fitted or [(0, 0)]))
        for k, part in enumerate(self.parts):
            rows = np.arange(self._starts[k], self._starts[k + 1])
            if self._fitted is None:
                groups.append(Group(rows, part.weight))
                continue
            own = np.array([distinct.index(self._fitted[row]) for row in rows])
            groups += [Group(rows[own == bucket], part.weight, int(bucket)) for bucket in np.unique(own)]
        return groups

    def size_of(self, row: int) -> Size:
        """Return the width and height at which the picture of a row is trained, in px."""
        return (self.config.size, self.config.size) if self._fitted is None else self._fitted[row]

    def plan(self) -> list[BucketRow]:
        """Return what a pass holds, by size."""
        sizes: dict[Size, list[int]] = {}
        for row in range(len(self)):
            sizes.setdefault(self.size_of(row), []).append(row)
        counts: dict[Size, int] = {}
        for group in self.order.groups:
            size = self.size_of(int(group.rows[0]))
            counts[size] = counts.get(size, 0) + group.count
        batch = self.order.batch or 1
        plan = []
        for size, rows in sorted(sizes.items()):
            own = [(int(w), int(h)) for w, h in (self.stored_size(row) for row in rows)]
            lost = [
                crop_loss(one, size) if self.place(row)[0].config.fit != "pad" else 0.0 for one, row in zip(own, rows)
            ]
            large = sum(one[0] < size[0] or one[1] < size[1] for one in own)
            count = counts[size]
            last = (count - 1) % batch + 1
            plan.append(BucketRow(size, count, -(-count // batch), last, float(np.mean(lost)), large))
        return plan

    def stored_size(self, row: int) -> Size:
        """Return the width and height of a row's picture as it is stored, upright, in px."""
        if not self._sizes[row].any():
            self._sizes[row] = self._header(*self.place(row))
        return int(self._sizes[row][0]), int(self._sizes[row][1])

    # samples

    def image(self, row: int, share: tuple[float, float] = CENTRE) -> Tensor:
        """Return the picture of a row as (3, H, W) uint8; `share` places a crop, from top left to bottom right."""
        if self._cache is not None:
            return self._kept_pixels(row)
        return self._decoded(row, self.size_of(row), share)

    def square(self, row: int) -> Tensor:
        """Return the picture of a row at `config.size`, (3, size, size) uint8, also where it is trained at another."""
        if self.one_size:
            return self.image(row)
        return self._decoded(row, (self.config.size, self.config.size), CENTRE)

    def _decoded(self, row: int, size: Size, share: tuple[float, float]) -> Tensor:
        """Return the picture of a row at a width and height, (3, H, W) uint8."""
        part, k = self.place(row)
        picture, self._sizes[row] = decode_row(part, k, part.read(k), self.config, lambda *_: size)
        pad = part.config.fit == "pad"
        fitted = fit(picture, size, pad=pad, share=share, background=self.config.background)
        return torch.from_numpy(np.array(fitted.picture)).permute(2, 0, 1)

    def _kept_pixels(self, row: int) -> Tensor:
        assert self._cache is not None
        if self._fitted is None:
            side = self.config.size
            return self._cache.view(-1, side, side, 3)[row].permute(2, 0, 1)
        width, height = self._fitted[row]
        start = int(self._offsets[row])
        return self._cache[start : start + 3 * width * height].view(height, width, 3).permute(2, 0, 1)

    def content(self, row: int) -> bytes:
        """Return the digest of a row's picture file."""
        if row not in self._content:
            part, k = self.place(row)
            data = part.read(k)
            self._content[row] = digest_of(data)
            self._sizes[row] = upright_size(data, name=part.name(k))  # else the file is read again for it
        return self._content[row]

    def mask(self, row: int) -> Image.Image | None:
        """Return the mask of a row as it is stored, 8-bit grey, or None."""
        part, k = self.place(row)
        data = part.mask(k)
        if data is None:
            return None
        name = f"mask of {part.name(k)}"
        return decode_image(data, name=name, max_pixels=self.config.max_pixels).convert("L")

    def row_of(self, number: int) -> int:
        """Return which picture sample `number` shows; -1 where a smaller last batch has none."""
        return self.order.row(number)

    def numbers_shown(self, numbers: Sequence[int]) -> list[int]:
        """Return the sample numbers that have a picture."""
        return [number for number in numbers if self.row_of(number) != EMPTY]

    def caption_of(self, number: int, row: int) -> str:
        """Return the caption sample `number` has; "" when it is dropped."""
        part, k = self.place(row)
        return part.captions.draw(part.source.row(k), number)

    def first_caption(self, row: int) -> str:
        """Return the first caption of a row, as held-out pictures have it."""
        part, k = self.place(row)
        return part.captions.first(part.source.row(k), row)

    def all_captions(self) -> Iterator[str] | None:
        """Return every caption that a sample may have, the dropped one aside; None: they are drawn without end."""
        if any(part.captions.wording.draws for part in self.parts):
            return None
        return (text for row in range(len(self)) for text in self._finite(row))

    def _finite(self, row: int) -> Sequence[str]:
        part, k = self.place(row)
        return part.captions.finite(part.source.row(k)) or ()

    def share_of(self, number: int, row: int) -> tuple[float, float]:
        """Return where the crop of sample `number` lies, from top left (0, 0) to bottom right (1, 1)."""
        if self.place(row)[0].config.fit != "random_crop":
            return CENTRE
        draw = generator(self.seed, "crop", number).random(2)
        return float(draw[0]), float(draw[1])

    def sample(self, number: int, *, pixels: bool = True) -> Sample:
        """Return sample n of the run, n = 0, 1, 2, ... without end; without `pixels` no picture is read."""
        row = self.row_of(number)
        part, _ = self.place(row)
        config = part.config
        flipped = config.flip and uniform(self.seed, "flip", number) < 0.5
        share = self.share_of(number, row)
        image = self.image(row, share) if pixels else None
        if image is not None and flipped:
            image = image.flip(-1)
        ids = self.size_ids(row, share, flipped=flipped)
        return Sample(number, row, flipped, image, self.caption_of(number, row), ids, config.loss_weight)

    def size_ids(self, row: int, share: tuple[float, float] = CENTRE, *, flipped: bool = False) -> tuple[int, ...]:
        """Return height and width of the stored picture, top and left of its crop, height and width trained at: px.

        Reference: Podell et al. 2023, arXiv:2307.01952, section 2.2.
        """
        part, _ = self.place(row)
        own, size = self.stored_size(row), self.size_of(row)
        top, left = (0, 0) if part.config.fit == "pad" else corner(own, size, share)
        if flipped and part.config.fit != "pad":
            left = corner(own, size, (share[0], 1 - share[1]))[1]
        return own[1], own[0], top, left, size[1], size[0]


def open_pictures(
    config: DataConfig, held_out: HeldOut | None, seed: int, batch: int = 1
) -> tuple[ImageFolder, ImageFolder | None]:
    """Return the pictures that are trained on, and those that are held out; the arguments are those of `ImageFolder`.

    Raises:
        ConfigError: as `ImageFolder`, or a share that is none.
        DataError: as `ImageFolder`.
    """
    trained = ImageFolder(config.trained_on(held_out), seed, batch)
    return trained, None if held_out is None else ImageFolder(config.held_out(held_out), seed)
