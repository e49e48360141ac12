"""`latent-diffusion adapter`: LoRA files made from weights: two models' difference, another rank, several as one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from latent_diffusion.cli.picture_files import split_weight
from latent_diffusion.errors import ConfigError, ResourceError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latent_diffusion.adapters.decompose import Decomposition
    from latent_diffusion.checkpoint.components import Components

__all__ = ["adapter"]

adapter = typer.Typer(
    help="Make LoRA files from weights: extract, resize, merge, average.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Rank = Annotated[int, typer.Option("--rank", metavar="N", min=1, help="Largest rank of a layer.")]
Energy = Annotated[
    float,
    typer.Option("--energy", metavar="X", help="Share of each layer's change that is enough, for lower ranks."),
]
Base = Annotated[str, typer.Option("--model", "-m", metavar="NAME|PATH", help="Model that the adapter belongs to.")]
Output = Annotated[
    Path, typer.Option("--output", "-o", metavar="FILE", help="File to write (.safetensors).", show_default=False)
]
Keys = Literal["kohya", "peft"]
Layout = Annotated[Keys, typer.Option("--layout", help="Names of the tensors.")]
Format = Literal["float32", "float16", "bfloat16"]
Numbers = Annotated[Format, typer.Option("--dtype", help="Number format; the halves make half as large a file.")]


@adapter.command()
def extract(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Model that the adapter will be used with.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="Model of the same sizes, fine-tuned from it.")],
    output: Output,
    rank: Rank = 16,
    energy: Energy = 1.0,
    layout: Layout = "kohya",
    dtype: Numbers = "float32",
) -> None:
    """Write the difference of two models as a LoRA.

    **Example**

    `latent-diffusion adapter extract emoji runs/mine/model --rank 16 --output mine.safetensors`
    """
    _check_output(output)
    from latent_diffusion.adapters import decompose
    from latent_diffusion.checkpoint.load import load_model

    components = load_model(base)
    _write(output, decompose.extract(components, load_model(tuned), rank, energy), layout, dtype, components)


@adapter.command()
def resize(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Adapter of any form and layout.")],
    output: Output,
    rank: Rank = 16,
    energy: Energy = 1.0,
    model: Base = "emoji",
    layout: Layout = "kohya",
    dtype: Numbers = "float32",
) -> None:
    """Write an adapter as a LoRA of another rank.

    **Example**

    `latent-diffusion adapter resize ink.safetensors --model model.safetensors --rank 8 --output small.safetensors`
    """
    _merge([split_weight(file)], output, rank, energy, model, layout, dtype)


@adapter.command()
def merge(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE[:WEIGHT]...", help="Adapters, each with its strength (default 1).")
    ],
    output: Output,
    rank: Rank = 64,
    energy: Energy = 1.0,
    model: Base = "emoji",
    layout: Layout = "kohya",
    dtype: Numbers = "float32",
) -> None:
    """Write several adapters as one LoRA.

    **Example**

    `latent-diffusion adapter merge ink.safetensors:0.8 paper.safetensors -m model.safetensors -o both.safetensors`
    """
    _merge([split_weight(file) for file in files], output, rank, energy, model, layout, dtype)


@adapter.command()
def average(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE[:WEIGHT]...", help="Adapters, such as the last ones of some runs.")
    ],
    output: Output,
    rank: Rank = 64,
    energy: Energy = 1.0,
    model: Base = "emoji",
    layout: Layout = "kohya",
    dtype: Numbers = "float32",
) -> None:
    """Write the average of several adapters as one LoRA; weights are relative to each other (default 1).

    The changes of the weights are averaged, not the factors, whose product is no average.

    **Example**

    `latent-diffusion adapter average runs/a/model/a.safetensors runs/b/model/b.safetensors -o mean.safetensors`
    """
    pairs = [split_weight(file) for file in files]
    total = sum(weight for _, weight in pairs)
    if min(weight for _, weight in pairs) < 0 or not total > 0:
        raise ConfigError(f"weights {[weight for _, weight in pairs]} of an average; none may be below 0, one is above")
    _merge([(file, weight / total) for file, weight in pairs], output, rank, energy, model, layout, dtype)


def _merge(
    pairs: list[tuple[Path, float]], output: Path, rank: int, energy: float, model: str, layout: Keys, dtype: Format
) -> None:
    _check_output(output)
    from latent_diffusion.adapters import decompose
    from latent_diffusion.adapters.lora_file import read_lora
    from latent_diffusion.checkpoint.load import load_model

    components = load_model(model)
    adapters = [(read_lora(file, components), weight) for file, weight in pairs]
    students = [found.report.trained for found, weight in adapters if found.report.trained and weight]
    header = students[-1].in_header() if students else {}
    _write(output, decompose.merge(components, adapters, rank, energy), layout, dtype, components, header)


def _check_output(output: Path) -> None:
    """Refuse before anything is read what could not be written."""
    if output.suffix != ".safetensors":
        raise ConfigError(f"--output {str(output)!r}: an adapter is written as .safetensors")
    if output.exists() or output.is_symlink():
        raise ConfigError(f"{str(output)!r} exists; choose another name")
    if not output.absolute().parent.is_dir():
        raise ResourceError(f"{str(output.parent)!r}: there is no such folder")


def _write(
    output: Path,
    made: "Decomposition",
    layout: Keys,
    dtype: Format,
    model: "Components",
    header: "Mapping[str, str] | None" = None,
) -> None:
    import torch

    from latent_diffusion.adapters.writing import write_factors

    kind = getattr(torch, dtype)
    factors = {
        part: {
            layer: {name: factor.to(kind) if factor.ndim else factor for name, factor in fields.items()}  # alpha: exact
            for layer, fields in layers.items()
        }
        for part, layers in made.factors.items()
    }
    write_factors(output, factors, layout, header, towers=len(model.text_encoder.towers))
    ranks = made.ranks.values()
    typer.echo(
        f"{len(ranks)} layers, rank {min(ranks)} to {max(ranks)}, {100 * made.error:.2g} % of the change is lost"
    )
    if made.skipped:
        shown = ", ".join(made.skipped[:3]) + (", ..." if len(made.skipped) > 3 else "")
        typer.echo(f"left out, as LoRA files hold no factors for them: {len(made.skipped)} tensors ({shown})")
    typer.echo(output)
