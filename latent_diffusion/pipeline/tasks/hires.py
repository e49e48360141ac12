"""A large picture in two passes: drawn at the size the model knows, enlarged, and drawn on at the large size.

Far beyond the size it was trained at a model repeats its subject. Drawn small the picture is composed once; the second
pass starts in the middle of the path and adds detail. ("hires fix" of the A1111 web UI.)
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from latent_diffusion.checks import SIZE_STEP, check_name, check_number, check_size
from latent_diffusion.data.images import to_pil, to_tensor
from latent_diffusion.diffusion.forward import add_noise
from latent_diffusion.diffusion.level import OnStep, Step
from latent_diffusion.errors import ConfigError
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.pipeline.call.options import Options, Texts
from latent_diffusion.pipeline.call.settings import Settings
from latent_diffusion.pipeline.engine.engine import Engine
from latent_diffusion.pipeline.engine.output import Output, OutputType, check_output_type, finish
from latent_diffusion.pipeline.engine.sampling import Sampled, decode, run_sampler
from latent_diffusion.pipeline.tasks.strength import late_levels
from latent_diffusion.provenance.record import HiresRecord
from latent_diffusion.runtime.undisturbed import undisturbed

__all__ = ["UPSCALERS", "hires"]

LATENT = {"latent": "bilinear", "latent_bicubic": "bicubic", "latent_nearest": "nearest"}
UPSCALERS = (*LATENT, "lanczos")
MAX_SCALE = 8.0


@undisturbed()
def hires(
    engine: Engine,
    prompt: Texts,
    options: Options,
    *,
    scale: float,
    upscaler: str,
    strength: float,
    steps: int | None,
    output_type: OutputType,
) -> Output:
    """Draw small, enlarge, draw on; arguments and errors as for the pipeline's method."""
    check_output_type(output_type)
    engine.components.check_unmasked()
    check_name("upscaler", upscaler, UPSCALERS)
    small = engine.settings(options)
    wider: Options = {**options, "height": _larger(small.height, scale), "width": _larger(small.width, scale)}
    if steps is not None:
        wider = {**wider, "num_inference_steps": steps}
    large = engine.settings(wider)
    levels = late_levels(engine.components, large, strength)
    if not levels:
        raise ConfigError("hires strength 0 would only enlarge; use more, or draw without hires")
    first = engine.start(prompt, small, options)
    # the second pass draws on from the same noise streams
    second = replace(
        engine.start(prompt, large, wider, levels=levels),
        noise=first.noise, seeds=first.seeds, variation=first.variation, initial=first.initial,
    )  # fmt: skip
    x, on_step = first.initial_noise(), options.get("on_step")
    drawn = run_sampler(small.build_sampler(), first.bind(), x, first.levels, first.noise, on_step)
    if drawn.stopped:
        images = finish(first.decoder, drawn.latents, output_type)
        return Output(images, first.seeds, first.records(drawn, (small.width, small.height)), stopped=True)
    latents = _enlarged(engine.components.autoencoder, drawn.latents, large, upscaler)
    x = add_noise(latents, second.initial_noise(), levels[0].alpha, levels[0].sigma)
    sampled = run_sampler(
        large.build_sampler(), second.bind(), x, levels, second.noise, _numbered_on(on_step, drawn.steps)
    )
    images = finish(second.decoder, sampled.latents, output_type)
    both, task = (
        replace(sampled, steps=drawn.steps + sampled.steps),
        _details(large, scale, upscaler, strength, sampled),
    )
    return Output(images, first.seeds, first.records(both, (large.width, large.height), task), stopped=sampled.stopped)


def _details(large: Settings, scale: float, upscaler: str, strength: float, sampled: Sampled) -> HiresRecord:
    ids = large.size_ids
    told = (None, None) if ids is None else (ids.positive, ids.negative)
    return HiresRecord(float(scale), upscaler, float(strength), large.num_inference_steps, sampled.steps, *told)


def _larger(side: int, scale: float) -> int:
    """Return a side in px, `scale` times as long, a multiple of 8."""
    if not check_number("scale", scale, MAX_SCALE) > 1.0:
        raise ConfigError(f"scale {scale:g} does not enlarge; use more than 1, up to {MAX_SCALE:g}")
    return check_size("the enlarged side", round(side * scale / SIZE_STEP) * SIZE_STEP)


def _enlarged(autoencoder: AutoencoderKL, latents: Tensor, settings: Settings, upscaler: str) -> Tensor:
    """Return `latents` (B, C, h, w) at the size of `settings`, enlarged as latents or as pictures."""
    height, width = settings.height, settings.width
    if upscaler in LATENT:
        size = (height // autoencoder.factor, width // autoencoder.factor)
        mode = LATENT[upscaler]
        return F.interpolate(latents, size, mode=mode, align_corners=None if mode == "nearest" else False)
    pictures = to_pil(decode(autoencoder, latents))
    resized = [to_tensor(picture.resize((width, height), Image.Resampling.LANCZOS)) for picture in pictures]
    images = torch.stack(resized).to(next(autoencoder.parameters()))
    return torch.cat([autoencoder.to_latents(image).float() for image in images.split(1)])


def _numbered_on(on_step: OnStep | None, done: int) -> "Callable[[Step], bool | None] | None":
    """Return `on_step` for steps that come after `done` others."""
    return None if on_step is None else lambda step: on_step(replace(step, index=step.index + done))
