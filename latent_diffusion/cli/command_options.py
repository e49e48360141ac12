"""The options that only the command line has: model, files and batches."""

from pathlib import Path
from typing import Annotated, TypedDict

from latent_diffusion.options.option import MACHINE, PICTURE, SDXL, Option

__all__ = ["CommandOptions"]


class CommandOptions(TypedDict, total=False):
    """Options of every command that draws, besides those of the Python methods."""

    model: Annotated[
        str,
        Option("Model: a bundled name, a diffusers folder or a single file.", "emoji", "NAME|PATH", flags=("-m",)),
    ]
    lora: Annotated[
        list[str] | None,
        Option(
            "LoRA, LoHa, LoKr or DoRA file to draw with; its weight is 1 unless given. Repeatable.",
            metavar="FILE[:WEIGHT]", flags=("-l",),
        ),
    ]  # fmt: skip
    embedding: Annotated[
        list[Path] | None,
        Option(
            "File of a learned word (textual inversion), which prompts then use by its name. Repeatable.",
            metavar="FILE",
        ),
    ]  # fmt: skip
    output: Annotated[
        Path | None,
        Option(
            "File (.png .jpg .webp) or folder to write. Several pictures get -0001 and so on; nothing is overwritten.",
            metavar="PATH", flags=("-o",), shown="outputs/<time>-<seed>.png",
        ),
    ]  # fmt: skip
    num_images: Annotated[
        int,
        Option(
            "Pictures for each prompt.", 1, "N", PICTURE, flags=("-k",), least=1, most=10_000, refused_early=True,
        ),
    ]  # fmt: skip
    refiner: Annotated[
        str | None,
        Option(
            "Second model that draws the end of the path: a name, a folder or a file.",
            metavar="NAME|PATH", panel=SDXL, shown="none",
        ),
    ]  # fmt: skip
    batch_size: Annotated[
        int | None,
        Option(
            "Pictures drawn at once; their number does not change them.",
            metavar="N", panel=MACHINE, shown="as many as fit into memory", least=1, most=10_000, refused_early=True,
        ),
    ]  # fmt: skip
    preview: Annotated[
        Path | None,
        Option(
            "File that shows the unfinished picture while it is drawn; it is removed at the end.",
            metavar="FILE", panel=MACHINE,
        ),
    ]  # fmt: skip
    preview_kind: Annotated[str, Option("Method of the preview: linear or taesd.", "linear", "NAME", MACHINE)]
    preview_model: Annotated[
        Path | None, Option("Folder of the tiny autoencoder for the preview taesd.", metavar="FOLDER", panel=MACHINE)
    ]
