"""A thing cut out of its white ground, what its colour is, and the colours that can be given to it."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from latent_diffusion.data.composed.colours import (
    NAMES,
    TARGETS,
    from_oklab,
    name_pixels,
    name_shares,
    to_oklab,
    to_polar,
)
from latent_diffusion.data.composed.regions import label, things

__all__ = ["Cutout", "cut_out", "recolour"]

NEARLY_WHITE = 244  # of 255: the least channel of a pixel of the ground
RIM = 5  # px: window in which the edge of a thing is compared with its inside
PALE = 0.12  # median distance from white, 0..1, under which the rim of a thing cannot be told from its ground
TRUE_SHARE = 0.5  # of the pixels that must have a name for the name to be true
CHROMATIC = 0.3  # share of the pixels with a hue, from which on the hue is moved and not given anew
ONE_HUE = 0.6  # share of the pixels with a hue that must be near the most frequent one
SHOWN = 0.125
SIDE = 64  # px, at which colours are judged


@dataclass(frozen=True)
class Cutout:
    """A thing without its ground, cut to its box.

    Attributes:
        image: RGBA.
        clean: whether its edge is told from white, so that it can stand before any ground.
        parts: number of its connected parts.
        colour: the name of its colour that is true of at least half of it; None: it has several.
        shows: the names of all colours that an eighth of it has.
    """

    image: Image.Image
    clean: bool
    parts: int
    colour: str | None
    shows: tuple[str, ...]


def cut_out(picture: Image.Image) -> Cutout | None:
    """Return the thing of a picture (RGB) on white; None where there is nothing, or where it is cut by the border."""
    rgb = np.asarray(picture)
    numbers, _ = label(rgb.min(axis=-1) >= NEARLY_WHITE)
    border = np.concatenate([numbers[0], numbers[-1], numbers[:, 0], numbers[:, -1]])
    if (border == 0).mean() > 0.1:
        return None
    outside = np.isin(numbers, np.unique(border[border > 0]))
    if outside.mean() > 0.98:
        return None
    ink = (255 - rgb.astype(float)).max(axis=-1) / 255  # distance from white
    most = np.asarray(Image.fromarray((ink * 255).astype(np.uint8)).filter(ImageFilter.MaxFilter(RIM))) / 255
    near = np.asarray(Image.fromarray(outside.astype(np.uint8)).filter(ImageFilter.MaxFilter(RIM))) > 0
    rim = near & ~outside
    alpha = np.where(outside, 0.0, np.where(rim, (ink / most.clip(1 / 255)).clip(0, 1), 1.0))
    straight = 255 - (255 - rgb) / alpha.clip(0.05)[..., None]  # the colour that white was mixed into
    rgba = np.dstack([np.where(rim[..., None], straight.clip(0, 255), rgb), alpha * 255]).round().astype(np.uint8)
    image = Image.fromarray(rgba, "RGBA")
    image = image.crop(image.getchannel("A").getbbox())
    parts = len(things(np.asarray(image.getchannel("A")) > 60))
    pixels = _pixels(image)
    shows = tuple(name for name, share in name_shares(pixels).items() if share >= SHOWN) if len(pixels) else ()
    return Cutout(image, bool(np.median(most[rim]) > PALE), parts, _true_name(pixels), shows)


def _pixels(image: Image.Image) -> np.ndarray:
    """Return the opaque pixels (N, 3) Oklab, at a size at which judging is quick."""
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    rgba = np.asarray(small)
    return to_oklab(rgba[rgba[..., 3] > 200][:, :3])


def _true_name(pixels: np.ndarray) -> str | None:
    """Return the name that at least half of the pixels (N, 3) Oklab have, or half of those with a hue."""
    if not len(pixels):
        return None
    name = next(iter(name_shares(pixels)))
    own = name_pixels(pixels)
    if name in ("black", "grey", "white"):
        share = (own == NAMES.index(name)).mean()
    else:
        chroma = to_polar(pixels)[1]
        share = (own[chroma >= 0.04] == NAMES.index(name)).mean()
    return name if share >= TRUE_SHARE else None


def recolour(cutout: Cutout, name: str) -> Image.Image | None:
    """Return the thing (RGBA) in another colour of `TARGETS`; None where the name would not be true of it.

    The hue of its pixels near the most frequent hue is moved, lightness and chroma towards those of the name; a grey
    thing gets the hue. Pixels of other hues, as of eyes and leaves, stay.
    """
    rgba = np.asarray(cutout.image)
    lab = to_oklab(rgba[..., :3])
    light, chroma, hue = to_polar(lab)
    solid = rgba[..., 3] > 200
    with_hue = solid & (chroma > 0.045)
    if not solid.any():
        return None
    if with_hue.sum() >= CHROMATIC * solid.sum():
        weights = np.bincount((hue[with_hue] // 10).astype(int) % 36, weights=chroma[with_hue], minlength=36)
        smooth = weights + 0.7 * (np.roll(weights, 1) + np.roll(weights, -1))
        main = 10.0 * int(smooth.argmax()) + 5
        away = (hue - main + 180) % 360 - 180
        share = (np.clip((65 - np.abs(away)) / 25, 0, 1) * np.clip((chroma - 0.015) / 0.035, 0, 1)).astype(float)
        if share[with_hue].mean() < ONE_HUE:
            return None
    else:
        away = np.zeros_like(hue)
        share = np.clip((light - 0.25) / 0.15, 0, 1) * np.where(light > 0.985, 0.3, 1.0)
    moved = solid & (share > 0.5)
    if moved.sum() < 0.35 * solid.sum():
        return None
    target_light, target_chroma, target_hue = TARGETS[name]
    middle = np.median(light[moved])
    contrast = 0.75 if name in ("yellow", "black", "brown") else 0.9
    new_light = (target_light + contrast * (light - middle)).clip(0.05, 0.985)
    own = np.median(chroma[moved])
    relative = (chroma / own).clip(0.4, 1.4) if own > 0.045 else np.ones_like(chroma)
    room = np.clip(np.minimum(new_light, 1.06 - new_light) / 0.25, 0, 1)  # little chroma fits beside black and white
    angle = np.radians(target_hue + 0.2 * away)
    radius = target_chroma * relative * room
    given = np.stack([new_light, radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    made = from_oklab(lab + share[..., None] * (given - lab))
    image = Image.fromarray(np.dstack([made, rgba[..., 3]]), "RGBA")
    return image if _true_name(_pixels(image)) == name else None
