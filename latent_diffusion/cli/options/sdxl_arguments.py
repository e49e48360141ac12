"""The options that only SDXL and its refiner read, each declared once."""

from typing import Annotated

import typer

__all__ = [
    "AestheticScore",
    "Crop",
    "NegativeAestheticScore",
    "NegativePrompt2",
    "OriginalSize",
    "Prompt2",
    "Refiner",
    "RefinerSwitch",
    "TargetSize",
]

SDXL = "SDXL"

Prompt2 = Annotated[
    str | None,
    typer.Option(
        "--prompt-2",
        metavar="TEXT",
        help="What the second text encoder reads.",
        show_default="the prompt",
        rich_help_panel=SDXL,
    ),
]
NegativePrompt2 = Annotated[
    str | None,
    typer.Option(
        "--negative-prompt-2",
        metavar="TEXT",
        help="What the second text encoder reads.",
        show_default="the negative prompt",
        rich_help_panel=SDXL,
    ),
]
OriginalSize = Annotated[
    tuple[int, int] | None,
    typer.Option(
        "--original-size",
        metavar="HEIGHT WIDTH",
        help="Said to be the picture's size in px before scaling; small values draw what small pictures look like.",
        show_default="the picture's",
        rich_help_panel=SDXL,
    ),
]
Crop = Annotated[
    tuple[int, int] | None,
    typer.Option(
        "--crop",
        metavar="TOP LEFT",
        help="Said to be the px cut off; 0 0 draws whole subjects.",
        show_default="0 0",
        rich_help_panel=SDXL,
    ),
]
TargetSize = Annotated[
    tuple[int, int] | None,
    typer.Option(
        "--target-size",
        metavar="HEIGHT WIDTH",
        help="Said to be the picture's size in px.",
        show_default="the picture's",
        rich_help_panel=SDXL,
    ),
]
AestheticScore = Annotated[
    float | None,
    typer.Option(
        "--aesthetic-score", metavar="X", help="1 to 10; refiner only.", show_default="6", rich_help_panel=SDXL
    ),
]
NegativeAestheticScore = Annotated[
    float | None,
    typer.Option(
        "--negative-aesthetic-score",
        metavar="X",
        help="The same for the negative prompt.",
        show_default="2.5",
        rich_help_panel=SDXL,
    ),
]
Refiner = Annotated[
    str | None,
    typer.Option(
        "--refiner",
        metavar="NAME|PATH",
        help="A second model that takes over for the end of the path.",
        show_default="none",
        rich_help_panel=SDXL,
    ),
]
RefinerSwitch = Annotated[
    float | None,
    typer.Option(
        "--refiner-switch",
        metavar="X",
        help="Share of the path after which it does.",
        show_default="0.8",
        rich_help_panel=SDXL,
    ),
]
