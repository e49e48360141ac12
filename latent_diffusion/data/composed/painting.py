"""A scene as a picture: the ground, then its things in order."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from latent_diffusion.data.composed.colours import TARGETS, from_oklab
from latent_diffusion.data.composed.scene import Ground, Placed, Scene

__all__ = ["LANDSCAPES", "colour_of_name", "paint", "paint_ground"]

LANDSCAPES = {"grass": "green", "night": "blue", "beach": "yellow", "snow": "white"}
"""Grounds that are places, and the colour that names most of each."""
_ABOVE = {"grass": (190, 225, 250), "beach": (150, 210, 245), "snow": (205, 220, 235)}
_BELOW = {"grass": (104, 178, 74), "beach": (240, 217, 150), "snow": (246, 249, 252)}
_NIGHT = (22, 32, 84)


def colour_of_name(name: str, light: float = 0.0, chroma: float = 1.0) -> tuple[int, int, int]:
    """Return the sRGB colour of a name, lighter by `light` and with `chroma` times the chroma."""
    if name in ("white", "grey"):
        level = (1.0 if name == "white" else 0.68) + min(light, 0)
        lab = (level, 0.0, 0.0)
    else:
        target, radius, hue = TARGETS[name]
        angle = np.radians(hue)
        radius *= chroma
        lab = (target + light, radius * np.cos(angle), radius * np.sin(angle))
    red, green, blue = from_oklab(np.array(lab)).tolist()
    return red, green, blue


def paint_ground(ground: Ground, size: int, draw: np.random.Generator) -> Image.Image:
    """Return the ground alone, (size, size) RGB, in a shade of its colour that is drawn."""
    if ground == Ground():
        return Image.new("RGB", (size, size), (255, 255, 255))
    if ground.form in LANDSCAPES:
        return _landscape(ground.form, size, draw)
    light, chroma = float(draw.uniform(-0.06, 0.09)), float(draw.uniform(0.7, 1.0))
    first = np.array(colour_of_name(ground.colour, light, chroma), float)
    if ground.form == "plain":
        return Image.new("RGB", (size, size), tuple(first.round().astype(int).tolist()))
    away = -0.09 if ground.colour != "black" and (ground.colour == "grey" or TARGETS[ground.colour][0] > 0.7) else 0.09
    light, chroma = min(light, 0.03), max(chroma, 0.85)
    first, second = (np.array(colour_of_name(ground.colour, light + by, chroma), float) for by in (0.0, away))
    share = np.linspace(0, 1, size)[:, None, None]
    if draw.random() < 0.5:
        share = share[::-1]
    pixels = first + share * (second - first)
    return Image.fromarray(np.broadcast_to(pixels, (size, size, 3)).round().astype(np.uint8))


def _landscape(form: str, size: int, draw: np.random.Generator) -> Image.Image:
    pixels = np.empty((size, size, 3), np.uint8)
    if form == "night":
        pixels[:] = _NIGHT
        for y, x in draw.integers(0, size, (max(size // 4, 8), 2)).tolist():
            pixels[y, x] = (255, 250, 210)
        return Image.fromarray(pixels)
    horizon = int(size * draw.uniform(0.5, 0.68))
    pixels[:horizon], pixels[horizon:] = _ABOVE[form], _BELOW[form]
    if form == "beach":
        pixels[horizon - size // 9 : horizon] = (60, 150, 215)
    return Image.fromarray(pixels)


def paint(scene: Scene, size: int, thing: Callable[[Placed], Image.Image], draw: np.random.Generator) -> Image.Image:
    """Return the picture (size, size) RGB of a scene.

    Args:
        scene: what to paint.
        size: side, px.
        thing: the picture (RGBA, cut to its box) of a thing in its colour.
        draw: of the ground's shade.
    """
    canvas = paint_ground(scene.ground, size, draw).convert("RGBA")
    for placed in scene.things:
        image = _formed(thing(placed), placed)
        scale = placed.side * size / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
        left, top = round(placed.x * size - width / 2), round(placed.y * size - height / 2)
        canvas.alpha_composite(image, *_inside(left, top, canvas.size, image.size))
    return canvas.convert("RGB")


def _inside(left: int, top: int, canvas: tuple[int, int], image: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Return where a picture lies on the canvas, moved so that all of it is seen."""
    return (max(0, min(left, canvas[0] - image[0])), max(0, min(top, canvas[1] - image[1]))), (0, 0)


def _formed(image: Image.Image, placed: Placed) -> Image.Image:
    """Return the thing as it is, or its silhouette or the outline of it in one colour."""
    if placed.form == "picture":
        return image
    colour = colour_of_name(placed.colour or "black")
    padded = Image.new("L", (image.width + 8, image.height + 8))
    padded.paste(image.getchannel("A"), (4, 4))
    if placed.form == "outline":
        width = max(3, round(0.05 * max(image.size)) | 1)
        inner = padded.filter(ImageFilter.MinFilter(width))
        padded = Image.fromarray(np.asarray(padded) - np.minimum(np.asarray(inner), np.asarray(padded)))
    made = Image.new("RGBA", padded.size, (*colour, 0))
    made.putalpha(padded)
    return made
