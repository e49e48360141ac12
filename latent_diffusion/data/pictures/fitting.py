"""A picture at the size it is trained at: scaled until it fills the size and cut, or whole with borders.

Filter: Lanczos over the full source, so that scaling down does not alias.
"""

from dataclasses import dataclass

from PIL import Image, ImageOps

__all__ = ["Fitted", "Size", "corner", "fit", "reduction", "shown"]

WHITE = (255, 255, 255)
Size = tuple[int, int]
"""Width and height in px."""
LEFT_OVER = 2
"""How many times the needed pixels a picture has at least, to each side, after it was reduced while it was decoded."""


@dataclass(frozen=True)
class Fitted:
    """A picture at its size, and top and left of what is shown of it, in px of the scaled picture."""

    picture: Image.Image
    top: int
    left: int


def shown(own: Size, size: Size) -> tuple[float, float]:
    """Return width and height of the part of a picture that has the proportions of `size`, in px of the picture."""
    (width, height), (wide, high) = own, size
    if width * high >= height * wide:
        return height * wide / high, float(height)
    return float(width), width * high / wide


def reduction(own: Size, size: Size, *, pad: bool = False) -> int:
    """Return by what the sides of a picture may be divided while it is decoded: 1, 2, 4 or 8.

    The reduced picture has at least `LEFT_OVER` times the pixels to each side that the fitted one has, and whole sides.
    """
    (width, height), (wide, high) = own, size
    scale = max(width / wide, height / high) if pad else min(width / wide, height / high)
    able = (n for n in (8, 4, 2) if width % n == height % n == 0 and scale >= LEFT_OVER * n)
    return next(able, 1)


def corner(own: Size, size: Size, share: tuple[float, float] = (0.5, 0.5)) -> tuple[int, int]:
    """Return top and left of a crop, in px of the scaled picture; `share` is where it lies, from top left (0, 0).

    Reference: Podell et al. 2023, arXiv:2307.01952, section 2.2.
    """
    (width, height), (wide, high) = own, size
    if width * high >= height * wide:
        return 0, round((width * high // height - wide) * share[1])
    return round((height * wide // width - high) * share[0]), 0


def fit(
    picture: Image.Image,
    size: Size,
    *,
    pad: bool = False,
    share: tuple[float, float] = (0.5, 0.5),
    background: tuple[int, int, int] = WHITE,
) -> Fitted:
    """Return an RGB picture at width x height `size` px.

    Args:
        picture: of any size.
        size: width and height.
        pad: show all of it, centred, with borders of `background`; otherwise a part of it that fills the size.
        share: where the part lies: (0, 0) top left, (0.5, 0.5) the centre, (1, 1) bottom right.
        background: colour of the borders.
    """
    own = picture.size
    if own == size:
        return Fitted(picture, 0, 0)
    if pad and own[0] * size[1] != own[1] * size[0]:
        return Fitted(ImageOps.pad(picture, size, Image.Resampling.LANCZOS, color=background), 0, 0)
    part_width, part_height = shown(own, size)
    top, left = (own[1] - part_height) * share[0], (own[0] - part_width) * share[1]
    box = (left, top, left + part_width, top + part_height)
    return Fitted(picture.resize(size, Image.Resampling.LANCZOS, box=box), *corner(own, size, share))
