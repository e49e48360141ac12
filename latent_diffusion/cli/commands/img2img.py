"""`latent-diffusion img2img`: redraw a picture with a prompt."""

from pathlib import Path
from typing import Annotated, Any

import typer

from latent_diffusion.cli.arguments import given_of, takes
from latent_diffusion.cli.command_options import CommandOptions
from latent_diffusion.options.call import Options
from latent_diffusion.options.model import LoadOptions
from latent_diffusion.options.tasks import RedrawingOptions

__all__ = ["img2img"]


@takes(RedrawingOptions, CommandOptions, Options, LoadOptions)
def img2img(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="Description of the new picture.", show_default=False)
    ],
    image: Annotated[
        Path, typer.Option("--image", "-i", metavar="FILE", help="Picture to redraw.", show_default=False)
    ],
    **given: Any,
) -> None:
    """Redraw a picture with a prompt.

    The result has --height and --width. Without them it keeps the picture's aspect ratio, and its size too if that is
    close to the model's.

    **Examples**

    `latent-diffusion img2img "a 3d render of a green apple" --image apple.png --strength 0.6`
    """
    from latent_diffusion.cli.batches import batches, steps_run
    from latent_diffusion.cli.picture_files import check_pictures

    check_pictures({"--image": image})
    own = given_of(RedrawingOptions, given)
    drawn = batches(
        given,
        [prompt],
        label="Redrawing",
        steps=lambda steps: steps_run(steps, given["strength"], exact=given["exact_steps"]),
    )
    for batch in drawn:
        batch.write(batch.pipe.image_to_image(batch.prompts, image=image, **own, **batch.options))
