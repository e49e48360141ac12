"""The options that say what a model does not say of itself."""

from typing import Annotated

import typer

__all__ = ["MODEL", "Averaged", "Family", "PredictionType"]

MODEL = "Model"

Family = Annotated[
    str | None,
    typer.Option(
        "--family",
        metavar="NAME",
        help="What a single file is, such as sd1, sd2_v or sdxl_inpaint.",
        show_default="read from its tensors",
        rich_help_panel=MODEL,
    ),
]
PredictionType = Annotated[
    str | None,
    typer.Option(
        "--prediction-type",
        metavar="NAME",
        help="What the U-Net's output means: epsilon, v_prediction or sample.",
        show_default="what the model says",
        rich_help_panel=MODEL,
    ),
]
Averaged = Annotated[
    bool,
    typer.Option(
        "--ema", help="Of a single file, take the U-Net's moving average beside the plain one.", rich_help_panel=MODEL
    ),
]
