"""The options of every command that draws, declared once: a command names the group it takes, and gets its options."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from latent_diffusion.cli.options.arguments import (
    Approximate,
    ClipSkip,
    Device,
    Dtype,
    Embeddings,
    Emphasis,
    Guidance,
    GuidanceInterval,
    GuidanceRescale,
    GuidanceScale,
    GuidanceSlicing,
    Height,
    LongPrompt,
    LoraFolder,
    Loras,
    Model,
    NegativePrompt,
    NumImages,
    Output,
    Rewrite,
    Seed,
    Steps,
    VariationSeed,
    VariationStrength,
    Width,
)
from latent_diffusion.cli.options.machine_arguments import (
    Attention,
    BatchSize,
    Fast,
    Offload,
    Preview,
    PreviewKind,
    PreviewModel,
    Tiling,
    VaeDtype,
)
from latent_diffusion.cli.options.model_arguments import Averaged, Family, PredictionType
from latent_diffusion.cli.options.sampling_arguments import (
    DiscardNextToLast,
    Eta,
    SamplerName,
    Sigmas,
    SpacingName,
    SpacingRho,
    Timesteps,
)
from latent_diffusion.cli.options.sdxl_arguments import (
    AestheticScore,
    Crop,
    NegativeAestheticScore,
    NegativePrompt2,
    OriginalSize,
    Prompt2,
    Refiner,
    RefinerSwitch,
    TargetSize,
)

__all__ = ["Drawing", "with_options"]

WITH_WHAT = ("model", "refiner", "lora", "embedding", "output", "device", "dtype")  # is used, not what is drawn
OF_MACHINE = ("vae_dtype", "attention", "tiling", "offload", "fast", "batch_size")
OF_PREVIEW = ("preview", "preview_kind", "preview_model")
OF_READING = ("family", "prediction_type", "averaged")
BY_NAME = inspect.Parameter.KEYWORD_ONLY
RENAMED = {"steps": "num_inference_steps", "num_images": "num_images_per_prompt"}


@dataclass(frozen=True)
class Drawing:
    """What every command that draws takes; names and defaults are those of the command line."""

    model: Model = "emoji"
    lora: Loras = None
    lora_folder: LoraFolder = None
    embedding: Embeddings = None
    negative_prompt: NegativePrompt = None
    output: Output = None
    num_images: NumImages = 1
    seed: Seed = None
    variation_seed: VariationSeed = None
    variation_strength: VariationStrength = 0.0
    height: Height = None
    width: Width = None
    steps: Steps = None
    guidance_scale: GuidanceScale = None
    guidance: Guidance = None
    guidance_rescale: GuidanceRescale = 0.0
    guidance_interval: GuidanceInterval = None
    guidance_slicing: GuidanceSlicing = False
    approximate: Approximate = None
    sampler: SamplerName = None
    spacing: SpacingName = None
    spacing_rho: SpacingRho = None
    discard_next_to_last: DiscardNextToLast = False
    timesteps: Timesteps = None
    sigmas: Sigmas = None
    eta: Eta = None
    clip_skip: ClipSkip = None
    emphasis: Emphasis = None
    rewrite: Rewrite = None
    long_prompt: LongPrompt = None
    prompt_2: Prompt2 = None
    negative_prompt_2: NegativePrompt2 = None
    original_size: OriginalSize = None
    crops_coords_top_left: Crop = None
    target_size: TargetSize = None
    aesthetic_score: AestheticScore = None
    negative_aesthetic_score: NegativeAestheticScore = None
    refiner: Refiner = None
    refiner_switch: RefinerSwitch = None
    family: Family = None
    prediction_type: PredictionType = None
    averaged: Averaged = False
    device: Device = None
    dtype: Dtype = "auto"
    vae_dtype: VaeDtype = "auto"
    attention: Attention = "auto"
    tiling: Tiling = None
    offload: Offload = False
    fast: Fast = True
    batch_size: BatchSize = None
    preview: Preview = None
    preview_kind: PreviewKind = "linear"
    preview_model: PreviewModel = None

    def options(self) -> dict[str, Any]:
        """Return what the pipeline's drawing methods take of it, under their names."""
        return {
            RENAMED.get(field.name, field.name): getattr(self, field.name)
            for field in fields(self)
            if field.name not in WITH_WHAT + OF_READING + OF_MACHINE + OF_PREVIEW
        }

    def reading(self) -> dict[str, Any]:
        """Return what the model does not say of itself."""
        return {name: getattr(self, name) for name in OF_READING}

    def machine(self) -> dict[str, Any]:
        """Return what `LatentDiffusionPipeline` takes of it besides device and dtype."""
        values = {name: getattr(self, name) for name in ("vae_dtype", "attention", "offload", "fast")}
        return values | {"tiling": "auto" if self.tiling is None else self.tiling}


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Return `command(..., drawing)` as typer is to see it: with every field of its `drawing` as an option."""
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "drawing"]
    kind: Any = get_type_hints(command)["drawing"]
    types = get_type_hints(kind, include_extras=True)
    shared = [inspect.Parameter(f.name, BY_NAME, default=f.default, annotation=types[f.name]) for f in fields(kind)]

    @functools.wraps(command)
    def whole(**values: Any) -> None:
        drawing = kind(**{parameter.name: values.pop(parameter.name) for parameter in shared})
        command(**values, drawing=drawing)

    parameters = [parameter.replace(kind=BY_NAME) for parameter in own] + shared
    whole.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters} | {"return": None}
    whole.__dict__["__signature__"] = inspect.Signature(parameters)
    return whole
