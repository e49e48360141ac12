"""`latent-diffusion info`: what made a picture, or what is in a model."""

import json
import math
import os
from pathlib import Path
from typing import Annotated

import typer

from latent_diffusion.errors import CheckpointError

__all__ = ["info"]

MAX_SHOWN = 10_000  # characters of a text that is none we know
MAX_LEVELS = 16  # of an autoencoder; published ones have four


def info(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE|NAME", help="A picture, a model folder, or a bundled name.", show_default=False),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Show what made a picture, or what is in a model.

    **Examples**

    `latent-diffusion info outputs/20261121-120000-7.png`

    `latent-diffusion info emoji`
    """
    from latent_diffusion.checkpoint.locate import bundled_models, locate_model

    if file not in bundled_models() and os.path.isfile(file):
        facts = _picture(Path(file))
    else:
        facts = _model(locate_model(file))
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        _show(file, facts)


def _picture(file: Path) -> dict[str, object]:
    """Return the size, and the exact record where we wrote it, else what another tool says."""
    from PIL import Image

    from latent_diffusion.data.images import load_image
    from latent_diffusion.pipeline.foreign import read_found
    from latent_diffusion.pipeline.picture_file import open_texts
    from latent_diffusion.pipeline.record import Record

    size = load_image(file).size
    texts = open_texts(file)
    with Image.open(file) as picture:
        facts: dict[str, object] = {"format": picture.format, "size": f"{size[0]}x{size[1]} px"}
    if texts.record is not None:
        return facts | json.loads(Record.from_json(texts.record).to_json())
    found = read_found(texts.chunks, texts.parameters)
    if found is None:
        return facts | {"parameters": (texts.parameters or "none in this file")[:MAX_SHOWN]}
    said = {"prompt": found.prompt, "negative_prompt": found.negative_prompt or None, **found.options}
    return facts | {"made by": found.tool} | said | dict(found.other)


def _model(folder: Path) -> dict[str, object]:
    """Return what a diffusers folder says of itself, from its configs and the headers of its weights."""
    from latent_diffusion.checkpoint.json_file import read_json

    facts: dict[str, object] = {"folder": os.path.relpath(folder)}
    for part in ("unet", "vae", "text_encoder"):
        files = sorted((folder / part).glob("*.safetensors"))
        if not files:
            raise CheckpointError(f"{str(folder / part)!r} holds no .safetensors file; fetch the model again")
        counts = [_weights(file) for file in files]
        dtypes = sorted({dtype for count in counts for dtype in count[1]})
        size = sum(file.stat().st_size for file in files)
        facts[part] = (
            f"{sum(count[0] for count in counts) / 1e6:.1f} M weights, {size / 1e6:.1f} MB, {', '.join(dtypes)}"
        )
    unet, vae = read_json(folder / "unet" / "config.json"), read_json(folder / "vae" / "config.json")
    blocks = vae.get("block_out_channels", [1])
    if not isinstance(blocks, list) or not 1 <= len(blocks) <= MAX_LEVELS:
        raise CheckpointError(f"{str(folder / 'vae' / 'config.json')!r}: block_out_channels is no list of levels")
    factor = 2 ** (len(blocks) - 1)
    if isinstance(side := unet.get("sample_size"), int):
        facts["picture size"] = f"{side * factor}x{side * factor} px"
    facts["latents"] = f"{vae.get('latent_channels')} channels, 1 cell for {factor}x{factor} px"
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    for key in ("prediction_type", "num_train_timesteps", "beta_schedule", "timestep_spacing", "_class_name"):
        if key in scheduler:
            facts["sampler of the folder" if key == "_class_name" else key.replace("_", " ")] = scheduler[key]
    card = folder / "README.md"
    if card.is_file():
        facts["model card"] = os.path.relpath(card)
    return facts


def _weights(file: Path) -> tuple[int, set[str]]:
    """Return the number of weights in a safetensors file and their dtypes, reading its header only."""
    from latent_diffusion.checkpoint.safetensors_file import read_header

    header = read_header(file)
    count = sum(math.prod(entry["shape"]) for entry in header.values())
    return count, {entry["dtype"] for entry in header.values()}


def _show(title: str, facts: dict[str, object]) -> None:
    """Print a table without reading markup out of the values: prompts come from strangers' files."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), show_header=False, box=None, title_justify="left", padding=(0, 2, 0, 0))
    for key, value in facts.items():
        if isinstance(value, dict):
            for inner, item in value.items():
                table.add_row(Text(f"{key} {inner}".replace("_", " "), style="bold"), Text(_clean(item)))
        elif value is not None:
            table.add_row(Text(key.replace("_", " "), style="bold"), Text(_clean(value)))
    Console().print(table)


def _clean(value: object) -> str:
    """Return the value without control characters, which could steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in str(value))
