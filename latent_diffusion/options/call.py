"""The options of every drawing method."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypedDict

from latent_diffusion.options.option import MACHINE, PICTURE, PROMPT, SAMPLING, SDXL, Option
from latent_diffusion.registry import names

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from latent_diffusion.diffusion.approximation import Approximation
    from latent_diffusion.diffusion.guidance import Guidance
    from latent_diffusion.diffusion.level import OnStep

__all__ = ["Emphasis", "LongPrompt", "Options", "Pair", "Refiner", "Seeds", "Texts"]

Texts = str | Sequence[str] | None
Pair = tuple[int, int]
Seeds = int | Sequence[int] | None
Emphasis = Literal["a1111", "no-norm", "comfy", "none", "ignore"]
LongPrompt = Literal["chunk", "truncate", "error"]

OF_MODEL = "the model's"
SAMPLERS = ", ".join(names("latent_diffusion.samplers"))
SPACINGS = (
    "leading, linspace, trailing, sgm_uniform, simple, beta, karras, exponential, polyexponential, beta_sigma, "
    "kl_optimal, ays or automatic"
)


class Refiner(Protocol):
    """A second pipeline, as the option `refiner` takes it."""

    @property
    def engine(self) -> Any:
        """Its `pipeline.engine.engine.Engine`."""
        ...


class Options(TypedDict, total=False):
    """Optional arguments of every drawing method. Omitted or None: the default, which is often the model's.

    Names are those of diffusers where it has one.
    """

    negative_prompt: Annotated[
        Texts,
        Option("Text to steer away from.", metavar="TEXT", flags=("-n",), panel=PROMPT, cli=str, recorded=str | None),
    ]
    """One for all prompts, or a list with one per prompt."""
    emphasis: Annotated[
        Emphasis | None,
        Option(
            "Rule for weights such as (red:1.3): a1111, no-norm or comfy; ignore drops the weights; none reads "
            "brackets as plain text.",
            "a1111", metavar="NAME", panel=PROMPT, recorded=str, before="none",
        ),
    ]  # fmt: skip
    rewrite: Annotated[
        bool | None,
        Option(
            "Rewrite plain prompts into the model's caption format, where the model's folder describes one.",
            panel=PROMPT, shown="rewrite, unless adapters are active", recorded=False,
        ),
    ]  # fmt: skip
    """See `prompts.rewrite`. The record holds the rewritten prompt."""
    long_prompt: Annotated[
        LongPrompt | None,
        Option(
            "Handling of prompts longer than 75 tokens: chunk reads all of it, truncate the first 75 tokens, "
            "error refuses it.",
            "chunk", metavar="NAME", panel=PROMPT, recorded=str, before="truncate",
        ),
    ]  # fmt: skip
    lora_folder: Annotated[
        str | os.PathLike[str] | None,
        Option(
            "Folder with the files that `<lora:name:weight>` in a prompt refers to.",
            metavar="FOLDER", panel=PROMPT, cli=Path, recorded=False,
        ),
    ]  # fmt: skip
    """None: only adapters that are loaded can be named."""

    num_images_per_prompt: int
    """Images of each prompt; all images of the first prompt come first. Default 1."""
    seed: Annotated[
        Seeds,
        Option(
            "Seed from 0 to 4294967295. The same seed gives the same picture; picture k gets seed + k.",
            metavar="N", flags=("-s",), panel=PICTURE, shown="a new one", cli=int, recorded=False,
        ),
    ]  # fmt: skip
    """A list has one per image. None draws one; the output and the record hold it."""
    generator: "torch.Generator | Sequence[torch.Generator] | None"
    """torch generators instead of seeds, as in diffusers."""
    variation_seed: Annotated[
        Seeds,
        Option(
            "Second seed whose noise is blended in. The first seed stays the same for all pictures; this one "
            "increases by 1 per picture.",
            metavar="N", panel=PICTURE, shown="a new one with --variation-strength", cli=int, recorded=int | None,
        ),
    ]  # fmt: skip
    variation_strength: Annotated[
        float | None,
        Option(
            "Weight of the blend: 0 = only the first seed, 1 = only the variation seed.",
            0.0, metavar="X", panel=PICTURE, most=1.0, recorded=float,
        ),
    ]  # fmt: skip
    height: Annotated[
        int | None,
        Option(
            "Height in px that the model works at, a multiple of 8.",
            metavar="PX", panel=PICTURE, shown=OF_MODEL, recorded=int, record_name="work_height",
        ),
    ]  # fmt: skip
    width: Annotated[
        int | None,
        Option(
            "Width in px that the model works at, a multiple of 8.",
            metavar="PX", panel=PICTURE, shown=OF_MODEL, recorded=int, record_name="work_width",
        ),
    ]  # fmt: skip

    num_inference_steps: Annotated[
        int | None,
        Option(
            "Steps from noise to picture.",
            metavar="N", panel=SAMPLING, flags=("--steps",), shown=OF_MODEL, recorded=int,
        ),
    ]  # fmt: skip
    guidance_scale: Annotated[
        float | None,
        Option(
            "Strength of the prompt: 1 = no guidance, twice as fast; 0 = the negative prompt alone.",
            metavar="X", panel=SAMPLING, flags=("-g",), shown=OF_MODEL, most=100.0, recorded=float,
        ),
    ]  # fmt: skip
    guidance: Annotated[
        "Guidance | str | Sequence[str] | None",
        Option(
            "Guidance method: cfg, apg, cfg_zero or perp_neg; pag, seg, autoguidance:model=PATH, rescale, threshold, "
            "classifier:model=FOLDER,label=CLASS and noised_clip:model=FOLDER can be added. start=0.2,stop=0.8 sets "
            "the share of the steps during which it is on. Repeatable.",
            metavar="NAME[:KEY=VALUE,...]", panel=SAMPLING, shown="cfg", cli=list[str],
            recorded=tuple[str, ...] | None,
        ),
    ]  # fmt: skip
    """A name, several names, or an object. An object has its own scale."""
    guidance_rescale: Annotated[
        float | None,
        Option(
            "Reduction of overexposure by strong guidance: 0 = none, 1 = the contrast of a picture without guidance.",
            0.0, metavar="X", panel=SAMPLING, most=1.0, recorded=float,
        ),
    ]  # fmt: skip
    guidance_interval: Annotated[
        tuple[float, float] | None,
        Option(
            "Shares of the steps between which guidance is on, such as 0.1 0.8; each step outside costs half.",
            metavar="START STOP", panel=SAMPLING, shown="0 1",
        ),
    ]  # fmt: skip
    approximate: Annotated[
        "Approximation | str | Sequence[Approximation | str] | None",
        Option(
            "Approximation that draws nearly the same picture in less time: int8 (on CPUs), deepcache:interval=3, "
            "tome:ratio=0.5 or taesd:model=FOLDER. Repeatable.",
            metavar="NAME[:KEY=VALUE,...]", panel=SAMPLING, shown="exact", cli=list[str],
            recorded=tuple[str, ...] | None,
        ),
    ]  # fmt: skip
    sampler: Annotated[
        str | None,
        Option(
            f"Sampler: {SAMPLERS}; or the name in another program, such as 'DPM++ 2M Karras'.",
            metavar="NAME[:FIELD=VALUE,...]", panel=SAMPLING, shown=OF_MODEL, recorded=str,
        ),
    ]  # fmt: skip
    spacing: Annotated[
        str | None,
        Option(
            f"Rule that selects the noise levels to visit: {SPACINGS}.",
            metavar="NAME", panel=SAMPLING, shown=OF_MODEL, recorded=str,
        ),
    ]  # fmt: skip
    """None: the spacing in the sampler's name ("DPM++ 2M Karras"), or the model's."""
    spacing_rho: Annotated[
        float | None,
        Option("Exponent of karras and polyexponential spacing.", metavar="X", panel=SAMPLING, shown="7 and 1"),
    ]
    discard_next_to_last: Annotated[
        bool,
        Option(
            "Divide the path into one step more and leave out the level before the last, as A1111 does for DPM2.",
            False, panel=SAMPLING,
        ),
    ]  # fmt: skip
    timesteps: Annotated[
        Sequence[float] | None,
        Option(
            "Training times to visit, falling, such as 999,850,600,300; replaces steps and spacing.",
            metavar="T,T,...", panel=SAMPLING, recorded=tuple[float, ...] | None,
        ),
    ]  # fmt: skip
    sigmas: Annotated[
        Sequence[float] | None,
        Option(
            "Noise levels sigma / alpha to visit, falling, such as 14.6,3.9,0.9,0; replaces steps and spacing.",
            metavar="S,S,...", panel=SAMPLING, recorded=tuple[float, ...] | None,
        ),
    ]  # fmt: skip
    """For a rectified flow: sigma. A last 0 may be left out."""
    eta: Annotated[
        float | None,
        Option(
            "Share of the noise that ddim, ancestral and SDE samplers add at each step, 0 to 1.",
            metavar="X", panel=SAMPLING, shown="the sampler's: 0 for ddim, 1 for others", most=1.0, recorded=float,
        ),
    ]  # fmt: skip
    clip_skip: Annotated[
        int | None,
        Option("Last layers of the text encoder to skip.", metavar="N", panel=SAMPLING, shown="none", most=99),
    ]
    """For both prompts; in diffusers for `prompt` only."""

    prompt_embeds: "Tensor | None"
    """Text states (P, L, D) instead of `prompt`."""
    negative_prompt_embeds: "Tensor | None"
    """Text states instead of `negative_prompt`."""
    prompt_2: Annotated[
        Texts,
        Option(
            "Prompt for the second text encoder.",
            metavar="TEXT", panel=SDXL, shown="the prompt", cli=str, recorded=str | None,
        ),
    ]  # fmt: skip
    negative_prompt_2: Annotated[
        Texts,
        Option(
            "Negative prompt for the second text encoder.",
            metavar="TEXT", panel=SDXL, shown="the negative prompt", cli=str, recorded=str | None,
        ),
    ]  # fmt: skip
    pooled_prompt_embeds: "Tensor | None"
    """SDXL: the pooled vector (P, W) that belongs to `prompt_embeds`."""
    negative_pooled_prompt_embeds: "Tensor | None"
    """SDXL: the pooled vector that belongs to `negative_prompt_embeds`."""
    original_size: Annotated[
        Pair | None,
        Option(
            "Size conditioning: the training picture's size in px before resizing. Small values give the look of "
            "enlarged small pictures.",
            metavar="HEIGHT WIDTH", panel=SDXL, shown="the picture's", recorded=False,
        ),
    ]  # fmt: skip
    """The record holds all size numbers in `size_ids`."""
    crops_coords_top_left: Annotated[
        Pair | None,
        Option(
            "Size conditioning: px cropped off the training picture at the top and left; 0 0 draws whole subjects.",
            metavar="TOP LEFT", panel=SDXL, flags=("--crop",), shown="0 0", recorded=False,
        ),
    ]  # fmt: skip
    target_size: Annotated[
        Pair | None,
        Option(
            "Size conditioning of the base model: the picture's size in px.",
            metavar="HEIGHT WIDTH", panel=SDXL, shown="the picture's", recorded=False,
        ),
    ]  # fmt: skip
    negative_original_size: Pair | None
    """As `original_size`, for the negative prompt; None = as for the prompt."""
    negative_crops_coords_top_left: Pair | None
    """As `crops_coords_top_left`, for the negative prompt; None = as for the prompt."""
    negative_target_size: Pair | None
    """As `target_size`, for the negative prompt; None = as for the prompt."""
    aesthetic_score: Annotated[
        float | None,
        Option(
            "Aesthetic score for the prompt, 1 to 10; read by the refiner only.",
            metavar="X", panel=SDXL, shown="6", recorded=False,
        ),
    ]  # fmt: skip
    negative_aesthetic_score: Annotated[
        float | None,
        Option(
            "Aesthetic score for the negative prompt; read by the refiner only.",
            metavar="X", panel=SDXL, shown="2.5", recorded=False,
        ),
    ]  # fmt: skip
    refiner: "Refiner | None"
    """A second pipeline with the same latents that draws the end of the path from the same prompts."""
    refiner_switch: Annotated[
        float | None,
        Option(
            "Share of the path after which the refiner takes over.",
            metavar="X", panel=SDXL, shown="0.8", most=1.0, recorded=False,
        ),
    ]  # fmt: skip
    """The record holds the training time, in `refined_below`."""

    guidance_slicing: Annotated[
        bool | None,
        Option(
            "Run the U-Net on one row of the batch after another: least memory, most time.",
            False, panel=MACHINE, recorded=False,
        ),
    ]  # fmt: skip
    on_step: "OnStep | None"
    """Called with each `Step`; returning False stops, and the last estimate becomes the image."""
