"""`latent-diffusion inpaint`: repaint a part of a picture."""

from pathlib import Path
from typing import Annotated

import typer

from latent_diffusion.cli.drawing import with_options
from latent_diffusion.cli.repainting import PANEL, Repainting, steps_run

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
    from latent_diffusion.cli.output import names_a_file, plan_files
    from latent_diffusion.cli.progress import progress
    from latent_diffusion.cli.run import check_pictures, load_pipeline, seed_or_draw, warn_if_lossy, write_pictures

    check_pictures({"--image": image, "--mask": mask})
    seed = seed_or_draw(drawing.seed, drawing.num_images)
    files = plan_files(drawing.output, seed, drawing.num_images)
    warn_if_lossy(files)
    pipe = load_pipeline(drawing.model, drawing.device, drawing.dtype, drawing.lora, drawing.embedding)
    steps = drawing.steps or pipe.defaults.num_inference_steps
    run = steps_run(steps, drawing.strength, exact=drawing.exact_steps, resample=drawing.resample)
    of_mask = {"mask_mode": mask_mode, "mask_grow": mask_grow, "mask_blur": mask_blur}
    with progress("Repainting", run) as on_step:
        options = {**drawing.options(), **of_mask, "seed": seed}
        out = pipe.inpaint(prompt, image=image, mask_image=mask, **options, on_step=on_step)
    write_pictures(out, files, named=names_a_file(drawing.output))
