"""A large picture in two passes: drawn at the model's training size, enlarged, and redrawn at the large size.

Far beyond the size it was trained at a model repeats its subject. Drawn small the picture is composed once; the second
pass starts in the middle of the path and adds detail. ("hires fix" of the A1111 web UI.)
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from latent_diffusion.checks import SIZE_STEP, check_size
from latent_diffusion.data.pictures.images import to_pil, to_tensor
from latent_diffusion.diffusion.forward import add_noise
from latent_diffusion.diffusion.level import OnStep, Step
from latent_diffusion.errors import ConfigError
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.options.call import Options, Texts
from latent_diffusion.options.option import checked, recorded_values
from latent_diffusion.options.tasks import MAX_SCALE, HiresOptions, SecondPassOptions
from latent_diffusion.pipeline.call.settings import Settings
from latent_diffusion.pipeline.engine.engine import Engine
from latent_diffusion.pipeline.engine.output import Output, OutputType, Sampled, check_output_type, decode, finish
from latent_diffusion.pipeline.tasks.strength import late_levels
from latent_diffusion.provenance.record import HiresRecord
from latent_diffusion.runtime.undisturbed import undisturbed

__all__ = ["hires"]

LATENT = {"latent": "bilinear", "latent_bicubic": "bicubic", "latent_nearest": "nearest"}


@undisturbed()
def hires(
    engine: Engine,
    prompt: Texts,
    options: HiresOptions,
    *,
    output_type: OutputType,
) -> Output:
    """Draw small, enlarge, redraw; arguments and errors as for the pipeline's method."""
    check_output_type(output_type)
    engine.components.check_unmasked()
    enlarging, rest = checked(SecondPassOptions).read(options)
    small = engine.settings(rest)
    height, width = (_larger(side, enlarging.scale) for side in (small.height, small.width))
    wider: Options = rest | {"height": height, "width": width}
    if enlarging.hires_steps is not None:
        wider = {**wider, "num_inference_steps": enlarging.hires_steps}
    large = engine.settings(wider)
    levels = late_levels(engine.components, large, enlarging.hires_strength)
    if not levels:
        raise ConfigError("hires_strength 0 only enlarges the picture; use more, or draw without hires")
    first = engine.start(prompt, small, rest)
    # the second pass draws on from the same noise streams
    second = replace(
        engine.start(prompt, large, wider, levels=levels),
        noise=first.noise, seeds=first.seeds, variation=first.variation, initial=first.initial,
    )  # fmt: skip
    on_step = options.get("on_step")
    drawn = first.draw(first.initial_noise(), on_step)
    if drawn.stopped:
        return first.output(drawn, output_type)
    latents = _enlarged(engine.components.autoencoder, drawn.latents, large, enlarging.upscaler)
    x = add_noise(latents, second.initial_noise(), levels[0].alpha, levels[0].sigma)
    sampled = second.draw(x, _numbered_on(on_step, drawn.steps))
    images = finish(second.decoder, sampled.latents, output_type)
    both = replace(sampled, steps=drawn.steps + sampled.steps)
    return first.output(both, output_type, (large.width, large.height), _details(large, enlarging, sampled), images)


def _details(large: Settings, enlarging: Any, sampled: Sampled) -> HiresRecord:
    ids = large.size_ids
    return HiresRecord(
        **recorded_values(SecondPassOptions, enlarging.resolved(hires_steps=large.num_inference_steps)),
        steps_run=sampled.steps,
        size_ids=None if ids is None else ids.positive,
        negative_size_ids=None if ids is None else ids.negative,
    )


def _larger(side: int, scale: float) -> int:
    """Return a side in px, `scale` times as long, a multiple of 8."""
    if not scale > 1.0:
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
