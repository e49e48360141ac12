"""The options that only one drawing task has."""

from typing import Annotated, Literal, TypedDict

from latent_diffusion.checks import MAX_SIZE
from latent_diffusion.options.call import Options
from latent_diffusion.options.option import SAMPLING, Option

__all__ = [
    "Area",
    "EdgeOptions",
    "HiresOptions",
    "ImageToImageOptions",
    "InpaintOptions",
    "MaskMode",
    "MaskedContent",
    "OutpaintOptions",
    "RedrawingOptions",
    "RepaintingOptions",
    "ResizeMode",
    "SecondPassOptions",
    "Upscaler",
]

REPAINTING, REDRAWING, LARGE, EDGES = "Repainting", "Redrawing", "Large pictures", "Edges"

MaskMode = Literal["binary", "soft"]
MaskedContent = Literal["original", "fill", "noise", "nothing"]
"""original: the picture itself; fill: colours flowing in from around; noise: random latents; nothing: zero latents."""
Area = Literal["auto", "masked", "whole"]
ResizeMode = Literal["crop", "stretch", "pad"]
Upscaler = Literal["latent", "latent_bicubic", "latent_nearest", "lanczos"]

MAX_EDGE = 64  # px of a ramp
MAX_GROWTH = 1024  # px
MAX_PADDING = 1_000_000  # px; more than any picture has a side
MAX_REPEATS = 1000
MAX_SCALE = 8.0
MAX_STEPS = 1_000_000  # how many a model has levels for is checked where it is known


class RepaintingOptions(TypedDict, total=False):
    """How the masked part of a picture is repainted."""

    mask_channel: Annotated[
        Literal["grey", "alpha"],
        Option(
            "Channel of the mask file: grey (white is repainted) or alpha (transparent parts are repainted).",
            "grey", metavar="NAME", panel=REPAINTING,
        ),
    ]  # fmt: skip
    mask_invert: Annotated[bool, Option("Swap the parts that are repainted and kept.", False, panel=REPAINTING)]
    mask_mode: Annotated[
        MaskMode,
        Option(
            "Meaning of the mask's grey: binary repaints pixels of 128 or more; soft takes grey as strength per pixel.",
            "binary", metavar="NAME", panel=REPAINTING,
        ),
    ]  # fmt: skip
    mask_grow: Annotated[
        int,
        Option("Enlarge the mask by this many px.", 0, metavar="PX", panel=REPAINTING, most=MAX_GROWTH),
    ]
    mask_blur: Annotated[
        int,
        Option(
            "Ramp a soft mask up over this many px, inwards from its edge.",
            0, metavar="PX", panel=REPAINTING, most=MAX_EDGE,
        ),
    ]  # fmt: skip
    strength: Annotated[
        float,
        Option(
            "Share of the steps that are run: 0 = the picture as it is, 1 = painted anew.",
            1.0, metavar="X", panel=REPAINTING, most=1.0,
        ),
    ]  # fmt: skip
    exact_steps: Annotated[
        bool, Option("Run all of --steps at any strength, as the end of a finer path.", False, panel=SAMPLING)
    ]
    masked_content: Annotated[
        MaskedContent,
        Option(
            "Content of the hole before sampling: original, fill (colours from around it), noise or nothing.",
            "original", metavar="NAME", panel=REPAINTING, shown="original; fill when outpainting",
        ),
    ]  # fmt: skip
    start_from: Annotated[
        Literal["noise", "noised_image"] | None,
        Option(
            "Start of sampling: noise or noised_image.",
            metavar="NAME", panel=REPAINTING, shown="noise for an emptied hole at strength 1, else noised_image",
            recorded=str,
        ),
    ]  # fmt: skip
    inpaint_area: Annotated[
        Area,
        Option(
            "Part of the picture that the model sees: auto, masked (the mask and --padding, at the model's full size) "
            "or whole.",
            "auto", metavar="NAME", panel=REPAINTING,
        ),
    ]  # fmt: skip
    """See `inpainting.region`."""
    padding_mask_crop: Annotated[
        int | None,
        Option(
            "Px around the mask's box that the model sees.",
            metavar="PX", panel=REPAINTING, flags=("--padding",), shown="a quarter of the box; 32 for the area masked",
            most=MAX_PADDING, record_name="padding",
        ),
    ]  # fmt: skip
    feather: Annotated[
        int,
        Option(
            "Fade from the old picture to the new one over this many px, inside the mask.",
            2, metavar="PX", panel=REPAINTING, most=MAX_EDGE,
        ),
    ]  # fmt: skip
    resample: Annotated[
        int,
        Option(
            "Repeat each stretch of steps this many times, so that old and new parts fit together better.",
            0, metavar="N", panel=REPAINTING, most=MAX_REPEATS,
        ),
    ]  # fmt: skip
    jump_length: Annotated[
        int,
        Option("Steps in a stretch that --resample repeats.", 10, metavar="N", panel=REPAINTING, least=1,
               most=MAX_REPEATS),
    ]  # fmt: skip
    color_match: Annotated[
        bool, Option("Match the colours of the new part to its surroundings.", False, panel=REPAINTING)
    ]
    latent_blend: Annotated[
        bool,
        Option(
            "Also preserve the unmasked area in latent space. Only inpainting models can turn this off.",
            True, panel=REPAINTING,
        ),
    ]  # fmt: skip
    inpainting_adapter: Annotated[
        bool,
        Option(
            "Draw with the inpainting adapter of the model's folder, if it has one.",
            True, panel=REPAINTING, before=False,
        ),
    ]  # fmt: skip
    """See `adapters.mask_channels`; the record holds whether there was one."""


class InpaintOptions(Options, RepaintingOptions, total=False):
    """Optional arguments of `inpaint`; `height` and `width` are the size that the model works at."""


class EdgeOptions(TypedDict, total=False):
    """What outpainting adds."""

    left: Annotated[int, Option("Px to add on the left.", 0, metavar="PX", panel=EDGES, most=MAX_SIZE, recorded=False)]
    right: Annotated[
        int, Option("Px to add on the right.", 0, metavar="PX", panel=EDGES, most=MAX_SIZE, recorded=False)
    ]
    top: Annotated[int, Option("Px to add at the top.", 0, metavar="PX", panel=EDGES, most=MAX_SIZE, recorded=False)]
    bottom: Annotated[
        int, Option("Px to add at the bottom.", 0, metavar="PX", panel=EDGES, most=MAX_SIZE, recorded=False)
    ]


class OutpaintOptions(InpaintOptions, EdgeOptions, total=False):
    """Optional arguments of `outpaint`; the record holds the four sides as `added`."""


class RedrawingOptions(TypedDict, total=False):
    """How a whole picture is redrawn."""

    strength: Annotated[
        float,
        Option(
            "Share of the steps that are run: 0 = the picture as it is, 1 = little more than its colours is kept.",
            0.8, metavar="X", panel=REDRAWING, most=1.0,
        ),
    ]  # fmt: skip
    exact_steps: Annotated[
        bool, Option("Run all of --steps at any strength, as the end of a finer path.", False, panel=SAMPLING)
    ]
    resize_mode: Annotated[
        ResizeMode,
        Option("Fit of the picture to the working size: crop, stretch or pad.", "crop", metavar="NAME",
               panel=REDRAWING),
    ]  # fmt: skip


class ImageToImageOptions(Options, RedrawingOptions, total=False):
    """Optional arguments of `image_to_image`. The result has `height` and `width`.

    Without them a picture with once to one and a half times the model's px keeps its size, rounded to 8 px; any other
    is scaled to the model's px.
    """


class SecondPassOptions(TypedDict, total=False):
    """How a small picture is enlarged and drawn on."""

    scale: Annotated[
        float,
        Option(
            "Draw in two passes: at the model's size, then enlarged this many times (more than 1, up to 8).",
            2.0, metavar="X", panel=LARGE, flags=("--hires",), shown="one pass", most=MAX_SCALE,
        ),
    ]  # fmt: skip
    """The result's sides are rounded to 8 px."""
    upscaler: Annotated[
        Upscaler,
        Option(
            "Method of enlarging: latent, latent_bicubic, latent_nearest, or lanczos on the decoded picture.",
            "latent", metavar="NAME", panel=LARGE, shown="latent",
        ),
    ]  # fmt: skip
    hires_strength: Annotated[
        float,
        Option(
            "Share of the steps that the second pass runs; enlarged latents need 0.5 or more.",
            0.7, metavar="X", panel=LARGE, shown="0.7", most=1.0, record_name="strength",
        ),
    ]  # fmt: skip
    hires_steps: Annotated[
        int | None,
        Option(
            "Steps of the second pass, before its strength is applied.",
            metavar="N", panel=LARGE, shown="--steps", least=1, most=MAX_STEPS, recorded=int,
            record_name="num_inference_steps",
        ),
    ]  # fmt: skip


class HiresOptions(Options, SecondPassOptions, total=False):
    """Optional arguments of `hires`; `height` and `width` are those of the first pass."""
