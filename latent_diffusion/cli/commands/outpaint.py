"""`latent-diffusion outpaint`: draw beyond the edges of a picture."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from latent_diffusion.cli.options.drawing import with_options
from latent_diffusion.cli.options.repainting import Repainting

__all__ = ["outpaint"]

PANEL = "Edges"


@with_options
def outpaint(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the larger picture shows.", show_default=False)],
    image: Annotated[Path, typer.Option("--image", "-i", metavar="FILE", help="The picture.", show_default=False)],
    left: Annotated[int, typer.Option(metavar="PX", help="Px to add on the left.", rich_help_panel=PANEL)] = 0,
    right: Annotated[int, typer.Option(metavar="PX", help="Px to add on the right.", rich_help_panel=PANEL)] = 0,
    top: Annotated[int, typer.Option(metavar="PX", help="Px to add above.", rich_help_panel=PANEL)] = 0,
    bottom: Annotated[int, typer.Option(metavar="PX", help="Px to add below.", rich_help_panel=PANEL)] = 0,
    *,
    drawing: Repainting,
) -> None:
    """Draw beyond the edges of a picture.

    Every pixel of the picture stays exactly what it was. Height and width are those the model works at.

    **Examples**

    `latent-diffusion outpaint "a red apple on a table" --image apple.png --right 256`

    `latent-diffusion outpaint "a wide landscape" -i hill.jpg --left 128 --right 128 --resample 4`
    """
    from latent_diffusion.cli.batches import draw_pictures
    from latent_diffusion.cli.picture_files import check_pictures

    check_pictures({"--image": image})
    own = {"image": image, "left": left, "right": right, "top": top, "bottom": bottom}
    draw_pictures(
        drawing,
        [prompt],
        label="Outpainting",
        method=lambda pipe: partial(pipe.outpaint, **own),
        steps=drawing.steps_run,
        keeps_pixels=True,
    )
