"""Bring a picture to a size the model can work at."""

import math
from typing import get_args

from PIL import Image, ImageOps

from latent_diffusion.checks import SIZE_STEP, check_name, check_size
from latent_diffusion.options.tasks import ResizeMode
from latent_diffusion.pipeline.call.settings import Defaults

__all__ = ["fit", "size_for"]

ROOM = 1.5  # times the model's number of px, up to which a picture keeps its own size; 512 x 768 for a model of 512
GREY = (128, 128, 128)


def size_for(picture: tuple[int, int], defaults: Defaults, height: int | None, width: int | None) -> tuple[int, int]:
    """Return height and width in px, multiples of 8, to work on a picture of (width, height).

    What the caller gives is taken as it is, a side alone keeps the picture's shape. With neither, the picture keeps its
    size where it has once to one and a half times as many px as the model's own pictures; any other is scaled to as
    many as those have.

    Raises:
        ConfigError: a side that is no multiple of 8 in range.
    """
    for name, side in (("height", height), ("width", width)):
        if side is not None:
            check_size(name, side)
    if height is not None and width is not None:
        return height, width
    own_width, own_height = picture
    if height is not None or width is not None:
        scale = height / own_height if height is not None else (width or 0) / own_width
    else:
        model = defaults.height * defaults.width
        keeps = model <= own_width * own_height <= ROOM * model
        scale = 1.0 if keeps else math.sqrt(model / (own_width * own_height))
    return (height or _stepped(own_height * scale)), (width or _stepped(own_width * scale))


def _stepped(side: float) -> int:
    return max(round(side / SIZE_STEP), 1) * SIZE_STEP


def fit(picture: Image.Image, height: int, width: int, mode: str) -> Image.Image:
    """Return an RGB picture at height x width px.

    Args:
        picture: RGB of any size.
        height: px.
        width: px.
        mode: "crop" fills the size and cuts off what sticks out on both sides, "stretch" changes the shape, "pad" shows
            all of it with grey borders.

    Raises:
        ConfigError: unknown mode.
    """
    check_name("resize_mode", mode, get_args(ResizeMode))
    if picture.size == (width, height):
        return picture
    if mode == "stretch":
        return picture.resize((width, height), Image.Resampling.LANCZOS)
    if mode == "pad":
        return ImageOps.pad(picture, (width, height), Image.Resampling.LANCZOS, color=GREY)
    return ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
