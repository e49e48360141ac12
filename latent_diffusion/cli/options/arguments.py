"""The options that several commands share, each declared once."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Approximate",
    "ClipSkip",
    "Device",
    "Dtype",
    "Embeddings",
    "Emphasis",
    "Guidance",
    "GuidanceInterval",
    "GuidanceRescale",
    "GuidanceScale",
    "GuidanceSlicing",
    "Height",
    "LongPrompt",
    "LoraFolder",
    "Loras",
    "Model",
    "NegativePrompt",
    "NumImages",
    "Output",
    "Rewrite",
    "Seed",
    "Steps",
    "VariationSeed",
    "VariationStrength",
    "Width",
]

PROMPT, PICTURE, SAMPLING, MACHINE = "Prompt", "Picture", "Sampling", "Machine"
OF_MODEL = "the model's"

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME|PATH",
        help="A bundled name, a diffusers folder or a single file.",
    ),
]
Loras = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        "-l",
        metavar="FILE[:WEIGHT]",
        help="Draw with a LoRA, LoHa, LoKr or DoRA file, weight 1 if none is given. Repeatable.",
        show_default=False,
    ),
]
LoraFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Where the files are that a prompt asks for with `<lora:name:weight>`.",
        show_default=False,
    ),
]
Embeddings = Annotated[
    list[Path] | None,
    typer.Option(
        "--embedding",
        metavar="FILE",
        help="A learned word (textual inversion), to be written in prompts by its name. Repeatable.",
        show_default=False,
    ),
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
Guidance = Annotated[
    list[str] | None,
    typer.Option(
        "--guidance",
        metavar="NAME[:KEY=VALUE,...]",
        help="How to guide: cfg, apg, cfg_zero or perp_neg, and besides pag, seg, autoguidance:model=PATH, rescale or "
        "threshold; start=0.2,stop=0.8 says at which share of the steps. Repeatable.",
        show_default="cfg",
        rich_help_panel=SAMPLING,
    ),
]
GuidanceRescale = Annotated[
    float,
    typer.Option(
        "--guidance-rescale",
        metavar="X",
        help="Against overexposure by strong guidance: 0 none, 1 the spread without guidance.",
        rich_help_panel=SAMPLING,
    ),
]
GuidanceInterval = Annotated[
    tuple[float, float] | None,
    typer.Option(
        "--guidance-interval",
        metavar="START STOP",
        help="Shares of the steps between which guidance is on; outside, a step costs half.",
        show_default="0 1",
        rich_help_panel=SAMPLING,
    ),
]
Approximate = Annotated[
    list[str] | None,
    typer.Option(
        "--approximate",
        metavar="NAME[:KEY=VALUE,...]",
        help="Draw nearly the same picture for less: deepcache:interval=3, tome:ratio=0.5, taesd:model=FOLDER. "
        "Repeatable.",
        show_default="exact",
        rich_help_panel=SAMPLING,
    ),
]
GuidanceSlicing = Annotated[
    bool,
    typer.Option(
        "--guidance-slicing",
        help="Run the U-Net on one row after another: the least memory, the most time.",
        rich_help_panel=MACHINE,
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
Emphasis = Annotated[
    str | None,
    typer.Option(
        "--emphasis",
        metavar="NAME",
        help="How weights as in (red:1.3) count: a1111, no-norm, comfy, or none: brackets are text.",
        show_default="a1111",
        rich_help_panel=PROMPT,
    ),
]
Rewrite = Annotated[
    bool | None,
    typer.Option(
        "--rewrite/--no-rewrite",
        help="Read a plain prompt in the form of the model's captions, where its folder says what that is.",
        show_default="rewrite, without adapters",
        rich_help_panel=PROMPT,
    ),
]
LongPrompt = Annotated[
    str | None,
    typer.Option(
        "--long-prompt",
        metavar="NAME",
        help="Prompts of more than 75 tokens: chunk reads all, truncate the first 75, error refuses.",
        show_default="chunk",
        rich_help_panel=PROMPT,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="cpu, cuda or cuda:1.", show_default="cuda if there", rich_help_panel=MACHINE),
]
Dtype = Annotated[
    str, typer.Option(metavar="NAME", help="auto, float32, bfloat16 or float16.", rich_help_panel=MACHINE)
]
