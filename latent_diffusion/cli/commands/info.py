"""`latent-diffusion info`: how a picture was made, or the contents of a model."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from latent_diffusion.cli.terminal import harmless

__all__ = ["info"]

MAX_SHOWN = 10_000  # characters of a text that is none we know
MODELS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")  # suffixes of files of weights


def info(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE|NAME",
            help="Picture, model, LoRA, or bundled name.",
            show_default=False,
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Show how a picture was made, or the contents of a model.

    **Examples**

    `latent-diffusion info outputs/20261121-120000-7.png`

    `latent-diffusion info emoji`

    `latent-diffusion info v1-5-pruned-emaonly.safetensors`
    """
    from latent_diffusion.checkpoint.locate import bundled_models, locate_model

    path = Path(file)
    if file in bundled_models() or not os.path.isfile(file):
        from latent_diffusion.checkpoint.facts import folder_facts

        facts = folder_facts(locate_model(file))
    elif path.suffix.lower() in MODELS:
        from latent_diffusion.checkpoint.facts import file_facts

        facts = file_facts(path)
    else:
        facts = _picture(path)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        _show(file, facts)


def _picture(file: Path) -> dict[str, object]:
    """Return the size, and the exact record if the picture has one, else another tool's metadata."""
    from PIL import Image

    from latent_diffusion.data.pictures.images import load_image
    from latent_diffusion.provenance.foreign import read_found
    from latent_diffusion.provenance.picture_file import open_texts
    from latent_diffusion.provenance.record import Record

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


def _show(title: str, facts: dict[str, object]) -> None:
    """Print a table without reading markup out of the values: prompts come from untrusted files."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def cell(value: object) -> Text:
        return Text(harmless(str(value), lines=True))

    table = Table(title=Text(title), show_header=False, box=None, title_justify="left", padding=(0, 2, 0, 0))
    for key, value in facts.items():
        if isinstance(value, dict):
            for inner, item in value.items():
                table.add_row(Text(f"{key} {inner}".replace("_", " "), style="bold"), cell(item))
        elif value is not None:
            table.add_row(Text(key.replace("_", " "), style="bold"), cell(value))
    Console().print(table)
