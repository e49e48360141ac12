"""`latent-diffusion outpaint`: draw beyond the edges of a picture."""

from pathlib import Path
from typing import Annotated, Any

import typer

from latent_diffusion.cli.arguments import given_of, takes
from latent_diffusion.cli.command_options import CommandOptions
from latent_diffusion.options.call import Options
from latent_diffusion.options.model import LoadOptions
from latent_diffusion.options.tasks import EdgeOptions, RepaintingOptions

__all__ = ["outpaint"]

OF_MASKS = ("mask_channel", "mask_invert", "mask_mode", "mask_grow", "mask_blur")  # the mask is made here


@takes(EdgeOptions, RepaintingOptions, CommandOptions, Options, LoadOptions, without=OF_MASKS)
def outpaint(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="Description of the larger picture.", show_default=False)
    ],
    image: Annotated[
        Path, typer.Option("--image", "-i", metavar="FILE", help="Picture to extend.", show_default=False)
    ],
    **given: Any,
) -> None:
    """Draw beyond the edges of a picture.

    Every pixel of the picture is unchanged. --height and --width set the size that the model works at.

    **Examples**

    `latent-diffusion outpaint "a red apple on a table" --image apple.png --right 256`

    `latent-diffusion outpaint "a wide landscape" -i hill.jpg --left 128 --right 128 --resample 4`
    """
    from latent_diffusion.cli.batches import batches, steps_run
    from latent_diffusion.cli.picture_files import check_pictures

    check_pictures({"--image": image})
    own = given_of(EdgeOptions, given) | given_of(RepaintingOptions, given)
    drawn = batches(
        given,
        [prompt],
        label="Outpainting",
        steps=lambda steps: steps_run(steps, given["strength"], exact=given["exact_steps"], resample=given["resample"]),
        keeps_pixels=True,
    )
    for batch in drawn:
        batch.write(batch.pipe.outpaint(batch.prompts, image=image, **own, **batch.options))
