"""What a picture shows, measured: the colour of its thing and of its ground, how many things, where, and which."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from latent_diffusion.data.composed.colours import name_shares, to_oklab
from latent_diffusion.data.composed.regions import Thing, border_colour, mask_of_things, things
from latent_diffusion.evaluation.composition.prompts import Asked
from latent_diffusion.evaluation.features import Features, extract
from latent_diffusion.evaluation.pictures import Picture
from latent_diffusion.evaluation.retrieval import Retrieval
from latent_diffusion.models.efficientnet_lite import EfficientNetLite0

__all__ = ["Judge", "Seen", "colour_of_ground", "colour_of_thing", "place_of", "see"]

OFF_CENTRE = 0.08
"""Least distance of a centre of mass from the middle at which it is left, right, top or bottom: a share of the side."""
MARGIN = 0.12  # of a crop around a thing, as a share of its longer side


def to_uint8(image: Tensor) -> np.ndarray:
    """Return (H, W, 3) uint8 of a picture (3, H, W) in [-1, 1]."""
    return ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()


@dataclass(frozen=True)
class Seen:
    """The things of a picture (H, W, 3) uint8 and the mask (H, W) of all that is not ground."""

    rgb: np.ndarray
    mask: np.ndarray
    things: Sequence[Thing]


def see(image: Tensor) -> Seen:
    """Return what a picture (3, H, W) in [-1, 1] shows before its ground."""
    rgb = to_uint8(image)
    mask = mask_of_things(rgb)
    return Seen(rgb, mask, things(mask))


def colour_of_ground(seen: Seen) -> str:
    """Return the name of the median colour of the border."""
    return next(iter(name_shares(border_colour(to_oklab(seen.rgb))[None])))


def colour_of_thing(seen: Seen) -> str | None:
    """Return the name that most pixels of all things have; None where there is nothing."""
    pixels = to_oklab(seen.rgb[seen.mask])
    return next(iter(name_shares(pixels))) if len(pixels) else None


def place_of(seen: Seen) -> str:
    """Return where the centre of mass of all things is, as in "top left"; "" for the middle."""
    if not seen.mask.any():
        return ""
    y, x = (
        float(where.mean() + 0.5) / side for where, side in zip(np.nonzero(seen.mask), seen.mask.shape, strict=True)
    )
    vertical = "top" if y < 0.5 - OFF_CENTRE else "bottom" if y > 0.5 + OFF_CENTRE else ""
    across = "left" if x < 0.5 - OFF_CENTRE else "right" if x > 0.5 + OFF_CENTRE else ""
    return f"{vertical} {across}".strip()


def _crop(seen: Seen, mask: np.ndarray, size: int = 128) -> Tensor:
    """Return what a mask (H, W) covers, (3, size, size) in [-1, 1], in the middle of a white square."""
    y, x = np.nonzero(mask)
    top, bottom, left, right = y.min(), y.max() + 1, x.min(), x.max() + 1
    part = np.where(mask[..., None], seen.rgb, 255)[top:bottom, left:right]
    side = round(max(part.shape[:2]) * (1 + 2 * MARGIN))
    square = np.full((side, side, 3), 255, np.uint8)
    down, across = (side - part.shape[0]) // 2, (side - part.shape[1]) // 2
    square[down : down + part.shape[0], across : across + part.shape[1]] = part
    image = torch.from_numpy(square).permute(2, 0, 1)[None].float() / 127.5 - 1
    return F.interpolate(image, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)[0]


def _two_masks(seen: Seen) -> list[np.ndarray]:
    """Return the masks of the two largest parts, each with the parts nearest to it; fewer where there are fewer."""
    if len(seen.things) < 2:
        return [thing.mask for thing in seen.things]
    first, second, *others = seen.things
    masks = [first.mask.copy(), second.mask.copy()]
    for other in others:
        away = [np.hypot(other.y - thing.y, other.x - thing.x) for thing in (first, second)]
        masks[int(np.argmin(away))] |= other.mask
    return masks


class Judge:
    """Judges of pictures drawn for the prompts of the composition test.

    Args:
        network: gives the features by which things are searched.
        retrieval: the real pictures.
        real: those of each name that may be meant, by style.
    """

    def __init__(
        self, network: EfficientNetLite0, retrieval: Retrieval, real: Mapping[str, Mapping[str, Picture]]
    ) -> None:
        self._network, self._retrieval, self._real = network, retrieval, real

    def shows(self, asked: Asked, image: Tensor) -> dict[str, bool]:
        """Return whether a picture (3, H, W) in [-1, 1] shows what is asked: `right`, and `named`, the things alone.

        A thing is named if its family is among the five nearest of the style, as Name@5.
        """
        seen = see(image)
        if asked.kind == "pair":
            named = self._pair(asked, seen)
            return {"right": named, "named": named}
        named = bool(seen.mask.any()) and bool(self._named(asked, [self._part(asked, seen)], asked.names[0])[0])
        measured = {
            "colour": lambda: colour_of_thing(seen) == asked.value,
            "ground": lambda: colour_of_ground(seen) == asked.value,
            "count": lambda: len(seen.things) == int(asked.value),
            "place": lambda: place_of(seen) == asked.value,
        }
        return {"right": measured[asked.kind](), "named": named}

    def _part(self, asked: Asked, seen: Seen) -> Tensor:
        """Return the crop in which a thing is searched: one of several alike, else all that is not ground."""
        mask = seen.things[0].mask if asked.kind == "count" and seen.things else seen.mask
        return _crop(seen, mask)

    def _pair(self, asked: Asked, seen: Seen) -> bool:
        masks = _two_masks(seen)
        if len(masks) < 2:
            return False
        crops = [_crop(seen, mask) for mask in masks]
        first, second = (self._named(asked, crops, name) for name in asked.names)
        return bool((first[0] & second[1]) | (first[1] & second[0]))

    def _named(self, asked: Asked, crops: Sequence[Tensor], name: str) -> Tensor:
        """Return for each crop whether it shows the thing, in the style that is asked or, without one, in any; (n,)."""
        features: Features = extract(self._network, torch.stack([*crops]))
        found = torch.zeros(len(crops), dtype=torch.bool)
        for style, picture in self._real[name].items():
            if asked.style in ("", style):
                found |= self._retrieval.search(features, [picture] * len(crops)).name5
        return found
