"""`latent-diffusion generate`: pictures from text."""

from pathlib import Path
from typing import Annotated

import typer

from latent_diffusion.cli.drawing import Drawing, with_options

__all__ = ["generate"]

MAX_PICTURES = 10_000


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
    from latent_diffusion.cli.output import names_a_file, plan_files
    from latent_diffusion.cli.progress import progress
    from latent_diffusion.cli.run import load_pipeline, read_prompts_file, seed_or_draw, write_pictures
    from latent_diffusion.errors import ConfigError

    prompts = list(prompt or []) + (read_prompts_file(prompts_file) if prompts_file else [])
    if not prompts:
        raise ConfigError("no prompt: say what to draw, or give --prompts-file")
    count = len(prompts) * drawing.num_images
    if count > MAX_PICTURES:
        raise ConfigError(
            f"{len(prompts)} prompts with {drawing.num_images} pictures each; at most {MAX_PICTURES} in one run"
        )
    seed = seed_or_draw(drawing.seed, count)
    files = plan_files(drawing.output, seed, count)
    pipe = load_pipeline(drawing.model, drawing.device, drawing.dtype)
    with progress("Drawing", drawing.steps or pipe.defaults.num_inference_steps) as on_step:
        out = pipe(prompts, **{**drawing.options(), "seed": seed}, on_step=on_step)
    write_pictures(out, files, named=names_a_file(drawing.output))
