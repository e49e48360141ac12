"""The options that say where and how to compute; none of them decides a picture."""

from pathlib import Path
from typing import Annotated

import typer

from latent_diffusion.cli.options.arguments import MACHINE

__all__ = ["Attention", "BatchSize", "Fast", "Offload", "Preview", "PreviewKind", "PreviewModel", "Tiling", "VaeDtype"]

VaeDtype = Annotated[
    str,
    typer.Option(metavar="NAME", help="Of the autoencoder; auto is float32.", rich_help_panel=MACHINE),
]
Attention = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="auto, native, sdpa, xformers or math; one that does not work here is an error.",
        rich_help_panel=MACHINE,
    ),
]
Tiling = Annotated[
    bool | None,
    typer.Option(
        "--tiling/--no-tiling",
        help="Autoencoder in bands of rows: the same picture in less memory.",
        show_default="where memory is short",
        rich_help_panel=MACHINE,
    ),
]
Offload = Annotated[
    bool,
    typer.Option("--offload", help="Hold one part of the model on the GPU at a time.", rich_help_panel=MACHINE),
]
Fast = Annotated[
    bool,
    typer.Option(
        "--fast/--no-fast",
        help="Weights rearranged and kernels chosen for speed; the picture is the same within rounding.",
        rich_help_panel=MACHINE,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=10_000,
        metavar="N",
        help="Pictures drawn at once; the pictures are the same.",
        show_default="what fits into memory",
        rich_help_panel=MACHINE,
    ),
]
Preview = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Show the unfinished picture here while it is drawn; the file goes when all are done.",
        show_default=False,
        rich_help_panel=MACHINE,
    ),
]
PreviewKind = Annotated[str, typer.Option(metavar="NAME", help="linear or taesd.", rich_help_panel=MACHINE)]
PreviewModel = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="Tiny autoencoder of the preview taesd.", show_default=False, rich_help_panel=MACHINE
    ),
]
