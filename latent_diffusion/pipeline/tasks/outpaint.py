"""Outpainting: add borders to a picture and inpaint them; every pixel of the picture is unchanged."""

import numpy as np
from PIL import Image

from latent_diffusion.data.pictures.images import MAX_PIXELS, ImageSource, load_image
from latent_diffusion.errors import ConfigError
from latent_diffusion.options.call import Texts
from latent_diffusion.options.option import checked
from latent_diffusion.options.tasks import EdgeOptions, OutpaintOptions
from latent_diffusion.pipeline.engine.engine import Engine
from latent_diffusion.pipeline.engine.output import Output
from latent_diffusion.pipeline.tasks.inpaint import inpaint

__all__ = ["outpaint"]

WHITE, BLACK = 255, 0


def outpaint(
    engine: Engine,
    prompt: Texts,
    options: OutpaintOptions,
    *,
    image: ImageSource,
) -> Output:
    """Draw beyond the edges of a picture; arguments and errors as for the pipeline's method."""
    edges, rest = checked(EdgeOptions).read(options)
    left, right, top, bottom = sides = (edges.left, edges.right, edges.top, edges.bottom)
    if not any(sides):
        raise ConfigError("nothing to add: give left, right, top or bottom, in px")
    if options.get("mask_invert") or options.get("mask_channel", "grey") != "grey":
        raise ConfigError("outpainting makes its own mask: leave mask_invert and mask_channel out")
    if options.get("mask_grow"):
        raise ConfigError(
            "mask_grow would repaint a part of the picture, which outpainting keeps; leave it out, or use inpaint"
        )
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
    rest.setdefault("masked_content", "fill")
    return inpaint(engine, prompt, rest, image=larger, mask_image=mask, added=sides)


def _opaque_around(alpha: Image.Image, size: tuple[int, int], corner: tuple[int, int]) -> Image.Image:
    """Return the opacity of the larger picture: that of the picture at `corner`, whole around it."""
    whole = Image.new("L", size, WHITE)
    whole.paste(alpha, corner)
    return whole
