"""`latent-diffusion generate`: pictures from text."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from latent_diffusion.cli.options.drawing import Drawing, with_options
from latent_diffusion.cli.options.repainting import steps_run

__all__ = ["generate"]

MAX_PICTURES = 10_000
LARGE = "Large pictures"


@with_options
def generate(
    prompt: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT", help="What to draw; several prompts give several pictures.", show_default=False
        ),
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Read more prompts from a text file, one a line.", show_default=False),
    ] = None,
    hires: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Draw in two passes: enlarge X times (above 1) and draw on.",
            show_default="one pass",
            rich_help_panel=LARGE,
        ),
    ] = None,
    hires_strength: Annotated[
        float | None,
        typer.Option(metavar="X", help="How much the second pass changes.", show_default="0.7", rich_help_panel=LARGE),
    ] = None,
    hires_steps: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Steps of the second pass, before its strength.",
            show_default="--steps",
            rich_help_panel=LARGE,
        ),
    ] = None,
    upscaler: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="latent, latent_bicubic, latent_nearest or lanczos.",
            show_default="latent",
            rich_help_panel=LARGE,
        ),
    ] = None,
    *,
    drawing: Drawing,
) -> None:
    """Draw pictures from text.

    Prints the path of each picture it writes. Every picture carries the parameters that made it.

    **Examples**

    `latent-diffusion generate "a 3d render of a red apple"`

    `latent-diffusion generate "a flat vector illustration of a cat" --num-images 4 --seed 7 --output cats/`

    `latent-diffusion generate --prompts-file prompts.txt --model runs/my-model --steps 50`
    """
    from latent_diffusion.cli.batches import draw_pictures
    from latent_diffusion.cli.picture_files import read_prompts_file
    from latent_diffusion.errors import ConfigError

    prompts = list(prompt or []) + (read_prompts_file(prompts_file) if prompts_file else [])
    if not prompts:
        raise ConfigError("no prompt: say what to draw, or give --prompts-file")
    second = {"upscaler": upscaler, "hires_strength": hires_strength, "hires_steps": hires_steps}
    second = {name: value for name, value in second.items() if value is not None}
    if second and hires is None:
        raise ConfigError(f"--{next(iter(second)).replace('_', '-')} belongs to the second pass; give --hires too")
    count = len(prompts) * drawing.num_images
    if count > MAX_PICTURES:
        raise ConfigError(
            f"{len(prompts)} prompts with {drawing.num_images} pictures each; at most {MAX_PICTURES} in one run"
        )
    if hires is None:
        draw_pictures(drawing, prompts, label="Drawing", method=lambda pipe: pipe)
        return
    share = 0.7 if hires_strength is None else hires_strength
    draw_pictures(
        drawing,
        prompts,
        label="Drawing",
        method=lambda pipe: partial(pipe.hires, scale=hires, **second),
        steps=lambda steps: steps + steps_run(hires_steps or steps, share, exact=False),
        area=hires * hires,
    )
