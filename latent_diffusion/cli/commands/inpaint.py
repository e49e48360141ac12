"""`latent-diffusion inpaint`: repaint a part of a picture."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from latent_diffusion.cli.options.drawing import with_options
from latent_diffusion.cli.options.repainting import PANEL, Repainting

__all__ = ["inpaint"]


@with_options
def inpaint(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the repainted part shows.", show_default=False)],
    image: Annotated[Path, typer.Option("--image", "-i", metavar="FILE", help="The picture.", show_default=False)],
    mask: Annotated[
        Path,
        typer.Option(
            "--mask", metavar="FILE", help="Its mask, of the same size: white is repainted.", show_default=False
        ),
    ],
    mask_mode: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="binary (128 or more is repainted) or soft (grey is the strength of each pixel).",
            rich_help_panel=PANEL,
        ),
    ] = "binary",
    mask_grow: Annotated[
        int, typer.Option(metavar="PX", help="Make the mask larger by this much.", rich_help_panel=PANEL)
    ] = 0,
    mask_blur: Annotated[
        int,
        typer.Option(metavar="PX", help="Px over which a soft mask rises from its edge.", rich_help_panel=PANEL),
    ] = 0,
    *,
    drawing: Repainting,
) -> None:
    """Repaint the white part of a mask.

    Every pixel outside the mask stays exactly what it was; the picture keeps its size. Height and width are those the
    model works at, not the picture's.

    **Examples**

    `latent-diffusion inpaint "a red apple" --image table.png --mask hole.png`

    `latent-diffusion inpaint "a hat" -i portrait.jpg --mask head.png --masked-content fill --strength 0.8`
    """
    from latent_diffusion.cli.batches import draw_pictures
    from latent_diffusion.cli.picture_files import check_pictures

    check_pictures({"--image": image, "--mask": mask})
    own = {"image": image, "mask_image": mask, "mask_mode": mask_mode, "mask_grow": mask_grow, "mask_blur": mask_blur}
    draw_pictures(
        drawing,
        [prompt],
        label="Repainting",
        method=lambda pipe: partial(pipe.inpaint, **own),
        steps=drawing.steps_run,
        keeps_pixels=True,
    )
