"""`latent-diffusion generate`: pictures from text."""

from pathlib import Path
from typing import Annotated, Any

import typer

from latent_diffusion.cli.arguments import given_of, takes
from latent_diffusion.cli.command_options import CommandOptions
from latent_diffusion.options.call import Options
from latent_diffusion.options.model import LoadOptions
from latent_diffusion.options.option import checked
from latent_diffusion.options.tasks import SecondPassOptions

__all__ = ["generate"]

MAX_PICTURES = 10_000


@takes(SecondPassOptions, CommandOptions, Options, LoadOptions)
def generate(
    prompt: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT", help="Text to draw; several prompts give several pictures.", show_default=False
        ),
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Text file with more prompts, one per line.", show_default=False),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Name the pictures in the folder --output by their rows, and draw only those that are missing; --seed "
            "is 0 unless given.",
        ),
    ] = False,
    **given: Any,
) -> None:
    """Draw pictures from text.

    Prints the path of each picture. The file of each picture contains its parameters.

    **Examples**

    `latent-diffusion generate "a 3d render of a red apple"`

    `latent-diffusion generate "a flat vector illustration of a cat" --num-images 4 --seed 7 --output cats/`

    `latent-diffusion generate --prompts-file prompts.txt --model runs/my-model --steps 50`

    `torchrun --nproc_per_node 4 -m latent_diffusion generate --prompts-file prompts.txt --output pictures --resume`
    """
    from latent_diffusion.cli.batches import batches, steps_run
    from latent_diffusion.cli.picture_files import read_prompts_file
    from latent_diffusion.errors import ConfigError

    prompts = list(prompt or []) + (read_prompts_file(prompts_file) if prompts_file else [])
    if not prompts:
        raise ConfigError("no prompt; give PROMPT or --prompts-file")
    count = len(prompts) * given["num_images"]
    if count > MAX_PICTURES:
        raise ConfigError(
            f"{len(prompts)} prompts with {given['num_images']} pictures each; at most {MAX_PICTURES} in one run"
        )
    given["resume"] = resume
    second = given_of(SecondPassOptions, given)
    if "scale" not in second:
        if second:
            raise ConfigError(f"--{next(iter(second)).replace('_', '-')} belongs to the second pass; give --hires too")
        for batch in batches(given, prompts, label="Drawing"):
            batch.write(batch.pipe(batch.prompts, **batch.options))
        return
    enlarging, _ = checked(SecondPassOptions).read(second)
    drawn = batches(
        given,
        prompts,
        label="Drawing",
        steps=lambda steps: steps + steps_run(enlarging.hires_steps or steps, enlarging.hires_strength),
        area=enlarging.scale * enlarging.scale,
    )
    for batch in drawn:
        batch.write(batch.pipe.hires(batch.prompts, **second, **batch.options))
