"""`latent-diffusion outpaint`: draw beyond the edges of a picture."""

from pathlib import Path
from typing import Annotated

import typer

from latent_diffusion.cli.drawing import with_options
from latent_diffusion.cli.repainting import Repainting, steps_run

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
    from latent_diffusion.cli.output import names_a_file, plan_files
    from latent_diffusion.cli.progress import progress
    from latent_diffusion.cli.run import check_pictures, load_pipeline, seed_or_draw, warn_if_lossy, write_pictures

    check_pictures({"--image": image})
    seed = seed_or_draw(drawing.seed, drawing.num_images)
    files = plan_files(drawing.output, seed, drawing.num_images)
    warn_if_lossy(files)
    pipe = load_pipeline(drawing.model, drawing.device, drawing.dtype, drawing.lora, drawing.embedding)
    steps = drawing.steps or pipe.defaults.num_inference_steps
    run = steps_run(steps, drawing.strength, exact=drawing.exact_steps, resample=drawing.resample)
    sides = {"left": left, "right": right, "top": top, "bottom": bottom}
    with progress("Outpainting", run) as on_step:
        out = pipe.outpaint(prompt, image=image, **sides, **{**drawing.options(), "seed": seed}, on_step=on_step)
    write_pictures(out, files, named=names_a_file(drawing.output))
