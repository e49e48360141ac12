"""Everything that can be found out about a data set before a run: its pictures, captions and masks.

Near-duplicates are pictures whose difference hashes (Krawetz 2013, "Kind of like that") differ in at most 3 of 64 bits:
each bit is whether a grey pixel of the picture, at 9 x 8 px, is darker than its right neighbour.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from latent_diffusion.data.ahead import ahead
from latent_diffusion.data.checks.checking import decode_row, digest_of
from latent_diffusion.data.opening import Part, open_parts
from latent_diffusion.data.pictures.fitting import Size
from latent_diffusion.data.pictures.images import decode_image, upright_size
from latent_diffusion.data.places.stalled import StalledRead
from latent_diffusion.data.settings import DataConfig
from latent_diffusion.errors import DataError

__all__ = ["Examined", "Findings", "examine"]

AHEAD = 64  # pictures that are decoded before their turn
NEAR = 3  # bits that may differ between near-duplicates
BANDS = 4  # of 16 bits: of two hashes that differ in 3 bits, one band at least is equal
CROWD = 200  # pictures with an equal band among which pairs are no longer looked for

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Examined:
    """One picture.

    Attributes:
        where, name: its source and its name there.
        part, row: its place in the sources.
        size: width and height as stored, upright; None where it cannot be read.
        target: width and height it is trained at.
        fault: what is wrong with the picture; "" = nothing.
        mask_fault: what is wrong with its mask; "" = nothing, None = it has none.
        content: digest of its file.
        hash: 64 bits of what it looks like.
    """

    where: str
    name: str
    part: int
    row: int
    size: Size | None = None
    target: Size | None = None
    fault: str = ""
    mask_fault: str | None = None
    content: bytes = b""
    hash: int = 0


@dataclass
class Findings:
    """All pictures, and what is unusual about them; indices are those of `pictures`."""

    parts: list[Part]
    pictures: list[Examined]
    captions: list[list[str]] = field(default_factory=list)
    tags: Counter[str] = field(default_factory=Counter)

    @property
    def broken(self) -> list[int]:
        """Pictures that cannot be trained on."""
        return [k for k, one in enumerate(self.pictures) if one.fault]

    @property
    def enlarged(self) -> list[int]:
        """Pictures that are smaller than the size they are trained at."""
        found = enumerate(self.pictures)
        return [k for k, p in found if p.size and p.target and (p.size[0] < p.target[0] or p.size[1] < p.target[1])]

    @property
    def bad_masks(self) -> list[int]:
        """Pictures whose mask cannot be read or has other proportions."""
        return [k for k, one in enumerate(self.pictures) if one.mask_fault]

    @property
    def uncaptioned(self) -> list[int]:
        """Pictures without a caption, where there are to be captions."""
        wanted = [bool(self.parts[one.part].config.captions) for one in self.pictures]
        return [k for k, texts in enumerate(self.captions) if wanted[k] and not texts]

    def copies(self) -> list[list[int]]:
        """Return groups of pictures whose files are equal."""
        groups: dict[bytes, list[int]] = {}
        for k, one in enumerate(self.pictures):
            if one.content:
                groups.setdefault(one.content, []).append(k)
        return [group for group in groups.values() if len(group) > 1]

    def near(self) -> list[tuple[int, int]]:
        """Return pairs of pictures that look alike but are other files."""
        pairs: set[tuple[int, int]] = set()
        for band in range(BANDS):
            groups: dict[int, list[int]] = {}
            for k, one in enumerate(self.pictures):
                if one.size is not None:
                    groups.setdefault(one.hash >> 16 * band & 0xFFFF, []).append(k)
            for group in groups.values():
                if 1 < len(group) <= CROWD:
                    pairs |= set(self._alike(group))
        return sorted(pairs)

    def _alike(self, group: Sequence[int]) -> Iterator[tuple[int, int]]:
        for place, a in enumerate(group):
            for b in group[place + 1 :]:
                one, two = self.pictures[a], self.pictures[b]
                if one.content != two.content and (one.hash ^ two.hash).bit_count() <= NEAR:
                    yield a, b


def examine(config: DataConfig, seed: int, progress: Progress | None = None) -> Findings:
    """Decode every picture and read every caption and mask; nothing is left out and nothing raises for one picture.

    Raises:
        ConfigError: a filter or caption field that no row has.
        DataError: a source cannot be opened, or a read stalls.
    """
    parts = open_parts(config, seed)
    findings = Findings(parts, [])
    total, workers = sum(len(part.kept) for part in parts), min(8, os.cpu_count() or 1)
    for number, part in enumerate(parts):

        def one(k: int, number: int = number, part: Part = part) -> Examined:
            return _examined(config, number, part, k)

        for found in ahead(one, map(int, part.kept), workers, AHEAD):
            findings.pictures.append(found)
            findings.captions.append(_captions(findings, part, found))
            if progress is not None:
                progress("pictures", len(findings.pictures), total)
    return findings


def _captions(findings: Findings, part: Part, found: Examined) -> list[str]:
    """Return all captions of a picture, and count their tags."""
    try:
        texts = [text for field in part.captions.fields(part.source.row(found.row)).values() for text in field]
    except DataError:
        return []
    separator = part.config.wording.separator
    for text in texts:
        findings.tags.update({tag.strip().lower() for tag in text.split(separator) if tag.strip()})
    return texts


def _examined(config: DataConfig, number: int, part: Part, k: int) -> Examined:
    where = part.source.where
    try:
        name = part.source.name(k)
    except DataError as error:
        return Examined(where, f"row {k}", number, k, fault=str(error))
    try:
        data = part.read(k)
        picture, _ = decode_row(part, k, data, config)
    except StalledRead:
        raise
    except DataError as error:
        return Examined(where, name, number, k, fault=str(error))
    target = (config.size, config.size)
    if part.buckets is not None:
        target = part.buckets.of(np.array([picture.size]))[0]
    return Examined(
        where, name, number, k, picture.size, target, "", _mask_fault(part, k, picture.size), digest_of(data),
        _hash(picture),
    )  # fmt: skip


def _mask_fault(part: Part, k: int, size: Size) -> str | None:
    """Return what is wrong with the mask of a picture."""
    try:
        data = part.mask(k)
        if data is None:
            return None
        own = upright_size(data, name="mask")
        grey = np.asarray(decode_image(data, name="mask").convert("L"))
    except StalledRead:
        raise
    except DataError as error:
        return str(error)
    if abs(own[0] * size[1] - own[1] * size[0]) > max(size) + max(own):
        return f"{own[0]}x{own[1]} px, the picture is {size[0]}x{size[1]} px: other proportions"
    if grey.min() == grey.max():
        return f"all of it is {int(grey.min())}"
    return ""


def _hash(picture: Image.Image) -> int:
    grey = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX)).astype(np.int16)
    return int.from_bytes(np.packbits(grey[:, :-1] < grey[:, 1:]).tobytes(), "big")
