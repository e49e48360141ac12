"""The options that several commands share, each declared once."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "ClipSkip",
    "Device",
    "Dtype",
    "Eta",
    "GuidanceScale",
    "Height",
    "Model",
    "NegativePrompt",
    "NumImages",
    "Output",
    "SamplerName",
    "Seed",
    "SpacingName",
    "Steps",
    "VariationSeed",
    "VariationStrength",
    "Width",
]

PICTURE, SAMPLING, MACHINE = "Picture", "Sampling", "Machine"
OF_MODEL = "the model's"

Model = Annotated[
    str, typer.Option("--model", "-m", metavar="NAME|PATH", help="A bundled model's name, or a diffusers folder.")
]
NegativePrompt = Annotated[
    str | None,
    typer.Option(
        "--negative-prompt", "-n", metavar="TEXT", help="What to keep out of the picture.", show_default=False
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="PATH",
        help="A file (.png .jpg .webp) or a folder. Several pictures get -0001 and so on; nothing is overwritten.",
        show_default="outputs/<time>-<seed>.png",
    ),
]
NumImages = Annotated[
    int,
    typer.Option(
        "--num-images", "-k", min=1, max=10_000, metavar="N", help="Pictures for each prompt.", rich_help_panel=PICTURE
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        "-s",
        metavar="N",
        help="0 to 4294967295. The same seed gives the same picture; picture k gets seed + k.",
        show_default="a new one",
        rich_help_panel=PICTURE,
    ),
]
VariationSeed = Annotated[
    int | None,
    typer.Option(
        "--variation-seed",
        metavar="N",
        help="Lean towards the noise of this seed; all pictures then vary that of --seed, and this one counts up.",
        show_default="a new one with --variation-strength",
        rich_help_panel=PICTURE,
    ),
]
VariationStrength = Annotated[
    float,
    typer.Option(metavar="X", help="How far: 0 not at all, 1 its own picture.", rich_help_panel=PICTURE),
]
Height = Annotated[
    int | None,
    typer.Option(metavar="PX", help="A multiple of 8.", show_default=OF_MODEL, rich_help_panel=PICTURE),
]
Width = Annotated[
    int | None,
    typer.Option(metavar="PX", help="A multiple of 8.", show_default=OF_MODEL, rich_help_panel=PICTURE),
]
Steps = Annotated[
    int | None,
    typer.Option(metavar="N", help="Steps from noise to picture.", show_default=OF_MODEL, rich_help_panel=SAMPLING),
]
GuidanceScale = Annotated[
    float | None,
    typer.Option(
        "--guidance-scale",
        "-g",
        metavar="X",
        help="How strictly to follow the prompt; 1 is no guidance, and twice as fast.",
        show_default=OF_MODEL,
        rich_help_panel=SAMPLING,
    ),
]
SamplerName = Annotated[
    str | None,
    typer.Option(
        "--sampler", metavar="NAME", help="ddpm, ddim or dpmpp_2m.", show_default=OF_MODEL, rich_help_panel=SAMPLING
    ),
]
SpacingName = Annotated[
    str | None,
    typer.Option(
        "--spacing",
        metavar="NAME",
        help="Which noise levels to visit: leading, linspace, trailing or karras.",
        show_default=OF_MODEL,
        rich_help_panel=SAMPLING,
    ),
]
Eta = Annotated[
    float,
    typer.Option(
        metavar="X", help="Noise that ddim adds at each step: 0 none, 1 as much as ddpm.", rich_help_panel=SAMPLING
    ),
]
ClipSkip = Annotated[
    int | None,
    typer.Option(
        "--clip-skip",
        metavar="N",
        help="Last layers of the text model to leave out.",
        show_default="none",
        rich_help_panel=SAMPLING,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="cpu, cuda or cuda:1.", show_default="cuda if there", rich_help_panel=MACHINE),
]
Dtype = Annotated[
    str, typer.Option(metavar="NAME", help="auto, float32, bfloat16 or float16.", rich_help_panel=MACHINE)
]
