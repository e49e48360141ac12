"""`latent-diffusion img2img`: redraw a picture with a prompt."""

from pathlib import Path
from typing import Annotated

import typer

from latent_diffusion.cli.drawing import Drawing, with_options
from latent_diffusion.cli.repainting import ExactSteps, steps_run

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
    from latent_diffusion.cli.output import names_a_file, plan_files
    from latent_diffusion.cli.progress import progress
    from latent_diffusion.cli.run import check_pictures, load_pipeline, seed_or_draw, write_pictures

    check_pictures({"--image": image})
    seed = seed_or_draw(drawing.seed, drawing.num_images)
    files = plan_files(drawing.output, seed, drawing.num_images)
    pipe = load_pipeline(drawing.model, drawing.device, drawing.dtype, drawing.lora, drawing.embedding)
    run = steps_run(drawing.steps or pipe.defaults.num_inference_steps, strength, exact=exact_steps)
    with progress("Redrawing", run) as on_step:
        out = pipe.image_to_image(
            prompt,
            image=image,
            strength=strength,
            exact_steps=exact_steps,
            resize_mode=resize_mode,
            **{**drawing.options(), "seed": seed},
            on_step=on_step,
        )
    write_pictures(out, files, named=names_a_file(drawing.output))
