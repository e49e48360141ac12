"""`latent-diffusion img2img`: redraw a picture with a prompt."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from latent_diffusion.cli.options.drawing import Drawing, with_options
from latent_diffusion.cli.options.repainting import ExactSteps, steps_run

__all__ = ["img2img"]

PANEL = "Redrawing"


@with_options
def img2img(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the new picture shows.", show_default=False)],
    image: Annotated[Path, typer.Option("--image", "-i", metavar="FILE", help="The picture.", show_default=False)],
    strength: Annotated[
        float, typer.Option(metavar="X", help="0 leaves it as it is, 1 draws anew.", rich_help_panel=PANEL)
    ] = 0.8,
    exact_steps: ExactSteps = False,
    resize_mode: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="How it comes to the working size: crop, stretch or pad.", rich_help_panel=PANEL
        ),
    ] = "crop",
    *,
    drawing: Drawing,
) -> None:
    """Redraw a picture with a prompt.

    The result has --height and --width. Without them it keeps the picture's shape, and its size too where that is close
    to the model's.

    **Examples**

    `latent-diffusion img2img "a 3d render of a green apple" --image apple.png --strength 0.6`
    """
    from latent_diffusion.cli.batches import draw_pictures
    from latent_diffusion.cli.picture_files import check_pictures

    check_pictures({"--image": image})
    own = {"image": image, "strength": strength, "exact_steps": exact_steps, "resize_mode": resize_mode}
    draw_pictures(
        drawing,
        [prompt],
        label="Redrawing",
        method=lambda pipe: partial(pipe.image_to_image, **own),
        steps=lambda steps: steps_run(steps, strength, exact=exact_steps),
    )
