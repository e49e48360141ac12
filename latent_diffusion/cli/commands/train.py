"""`latent-diffusion train`: one training run in this process."""

from typing import Annotated

import typer

__all__ = ["train"]


def train(
    context: typer.Context,
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="YAML file: one of `configs/`, or your own.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Change of a single key, as in steps=200.", show_default=False),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print updates, passes, expected end and peak memory; train nothing.")
    ] = False,
) -> int:
    """Train a part of the model, or fine-tune all of it.

    The same as `python -m latent_diffusion.train`, in this process. Ctrl-C saves a checkpoint; the same command
    continues from it. For several processes use `accelerate launch -m latent_diffusion.train CONFIG`.

    Frequently changed keys: data.path, data.size, output, steps, batch_size, accumulation, precision,
    optimizer.learning_rate, sample.prompts. `docs/settings.md` lists all keys;
    `python -m latent_diffusion.train --help` prints those of a run.

    **Examples**

    `latent-diffusion train configs/finetune.yaml data.path=my-pictures output=runs/mine`

    `latent-diffusion train configs/emoji/unet.yaml steps=200 batch_size=32`
    """
    from latent_diffusion.train import main

    flags = [*(["--plan"] if plan else []), *(["--debug"] if context.obj["debug"] else [])]
    return main([config, *(overrides or []), *flags])
