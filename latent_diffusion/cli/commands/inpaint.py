"""`latent-diffusion inpaint`: repaint a part of a picture."""

from pathlib import Path
from typing import Annotated, Any

import typer

from latent_diffusion.cli.arguments import given_of, takes
from latent_diffusion.cli.command_options import CommandOptions
from latent_diffusion.errors import ConfigError
from latent_diffusion.options.call import Options
from latent_diffusion.options.model import LoadOptions
from latent_diffusion.options.tasks import RepaintingOptions

__all__ = ["inpaint"]


@takes(RepaintingOptions, CommandOptions, Options, LoadOptions)
def inpaint(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="Description of the repainted part.", show_default=False)
    ],
    image: Annotated[
        Path, typer.Option("--image", "-i", metavar="FILE", help="Picture to repaint.", show_default=False)
    ],
    mask: Annotated[
        Path | None,
        typer.Option(
            "--mask",
            metavar="FILE",
            help="Mask of the picture's size; its white part is repainted. With --mask-channel alpha the picture's own "
            "transparency is the mask where none is given.",
            show_default=False,
        ),
    ] = None,
    **given: Any,
) -> None:
    """Repaint the white part of a mask.

    Every pixel outside the mask is unchanged, and the picture keeps its size. --height and --width set the size
    that the model works at, not the picture's.

    **Examples**

    `latent-diffusion inpaint "a red apple" --image table.png --mask hole.png`

    `latent-diffusion inpaint "a hat" -i portrait.jpg --mask head.png --masked-content fill --strength 0.8`

    `latent-diffusion inpaint "a door" -i erased.png --mask-channel alpha`
    """
    from latent_diffusion.cli.batches import batches, steps_run
    from latent_diffusion.cli.picture_files import check_pictures

    check_pictures({"--image": image} | ({} if mask is None else {"--mask": mask}))
    if mask is None and given["mask_channel"] != "alpha":
        raise ConfigError("--mask: no mask is given; name a file, or use --mask-channel alpha for a picture with holes")
    own = given_of(RepaintingOptions, given)
    drawn = batches(
        given,
        [prompt],
        label="Repainting",
        steps=lambda steps: steps_run(steps, given["strength"], exact=given["exact_steps"], resample=given["resample"]),
        keeps_pixels=True,
    )
    for batch in drawn:
        batch.write(batch.pipe.inpaint(batch.prompts, image=image, mask_image=mask, **own, **batch.options))
