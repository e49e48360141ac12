"""Outpainting: put borders around a picture and inpaint them; every pixel of the picture stays what it was."""

import numpy as np
from PIL import Image

from latent_diffusion.checks import MAX_SIZE, check_integer
from latent_diffusion.data.images import MAX_PIXELS, ImageSource, load_image
from latent_diffusion.errors import ConfigError
from latent_diffusion.pipeline.call.options import InpaintOptions, Texts
from latent_diffusion.pipeline.engine.engine import Engine
from latent_diffusion.pipeline.engine.output import Output
from latent_diffusion.pipeline.tasks.inpaint import inpaint

__all__ = ["outpaint"]

WHITE, BLACK = 255, 0


def outpaint(
    engine: Engine,
    prompt: Texts,
    options: InpaintOptions,
    *,
    image: ImageSource,
    left: int,
    right: int,
    top: int,
    bottom: int,
) -> Output:
    """Draw beyond the edges of a picture; arguments and errors as for the pipeline's method."""
    sides = {"left": left, "right": right, "top": top, "bottom": bottom}
    for name, px in sides.items():
        check_integer(name, px, 0, MAX_SIZE)
    if not any(sides.values()):
        raise ConfigError("nothing to add: give left, right, top or bottom, in px")
    if options.get("mask_grow"):
        raise ConfigError("mask_grow would repaint the picture that outpainting keeps; leave it out, or use inpaint")
    picture = load_image(image, background=None)
    size = picture.width + left + right, picture.height + top + bottom
    if size[0] * size[1] > MAX_PIXELS:
        raise ConfigError(f"the picture would have {size[0]}x{size[1]} px; at most {MAX_PIXELS} px are made")
    # what stands under the fade from old to new at the seam goes on as the picture ends
    larger = Image.fromarray(np.pad(np.asarray(picture), ((top, bottom), (left, right), (0, 0)), mode="edge"))
    if larger.mode == "RGBA":
        larger.putalpha(_opaque_around(picture.getchannel("A"), size, (left, top)))
    larger.info = dict(picture.info)
    mask = Image.new("L", size, WHITE)
    mask.paste(BLACK, (left, top, left + picture.width, top + picture.height))
    filled: InpaintOptions = {"masked_content": "fill", **options}
    return inpaint(engine, prompt, filled, image=larger, mask_image=mask, added=(left, right, top, bottom))


def _opaque_around(alpha: Image.Image, size: tuple[int, int], corner: tuple[int, int]) -> Image.Image:
    """Return the opacity of the larger picture: that of the picture at `corner`, whole around it."""
    whole = Image.new("L", size, WHITE)
    whole.paste(alpha, corner)
    return whole
