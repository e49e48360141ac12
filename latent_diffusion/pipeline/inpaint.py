"""Inpainting around the sampler: start from the right latents, keep what is known, paste back what was painted.

The sampler knows nothing of it: what is known is kept by `diffusion.known.keep_known`, and the pixels outside the mask
are never written, so they are those of the input, bit for bit, whatever the autoencoder loses.
"""

import warnings

import torch

from latent_diffusion.data.images import to_pil
from latent_diffusion.diffusion.known import keep_known
from latent_diffusion.errors import LatentDiffusionWarning
from latent_diffusion.pipeline.canvas import Canvas, Known, Source, choose_start
from latent_diffusion.pipeline.engine import Engine
from latent_diffusion.pipeline.options import Options, Texts
from latent_diffusion.pipeline.output import Output
from latent_diffusion.pipeline.record import InpaintRecord
from latent_diffusion.pipeline.sampling import Sampled, decode, run_sampler
from latent_diffusion.pipeline.settings import steps_after_strength

__all__ = ["inpaint"]

CALLER = 4  # frames up from a warning here to who called the pipeline


@torch.no_grad()
def inpaint(
    engine: Engine,
    prompt: Texts,
    options: Options,
    *,
    image: Source,
    mask_image: Source,
    strength: float,
    masked_content: str,
    start_from: str | None,
    padding_mask_crop: int | None,
    feather: int,
) -> Output:
    """Repaint the white part of a mask; arguments and errors as for the pipeline's method."""
    settings = engine.settings(options)
    run = steps_after_strength(settings.num_inference_steps, strength)
    start = choose_start(start_from, masked_content, strength)
    work = (settings.width, settings.height)
    canvas = Canvas.read(image, mask_image, work=work, padding=padding_mask_crop, feather=feather)
    job = engine.start(prompt, settings, options)
    autoencoder = engine.components.autoencoder
    if canvas.region is None or not run:
        why = "strength is 0" if canvas.region else "the mask has no white (128 or more)"
        warnings.warn(f"nothing to repaint: {why}; the input comes back as it is", LatentDiffusionWarning, CALLER)
        sampled, images = Sampled(torch.empty(0), 0, False), [canvas.unchanged() for _ in job.seeds]
    else:
        x, levels = job.initial_noise(), settings.levels(engine.components)[-run - 1 :]
        filler = job.noise.draw(x.shape[1:]) if masked_content == "noise" and start != "noise" else None
        known = Known.encode(canvas, autoencoder, masked_content, filler)
        denoise = keep_known(job.bind(), known.latents, known.mask)
        x = known.start(start, x, levels[0])
        sampled = run_sampler(settings.build_sampler(), denoise, x, levels, job.noise, options.get("on_step"))
        images = [canvas.paste(painted) for painted in to_pil(decode(autoencoder, sampled.latents))]
    details = InpaintRecord(
        *canvas.hashes(),
        strength=float(strength),
        masked_content=masked_content,
        start_from=start,
        padding=padding_mask_crop,
        feather=feather,
        box=canvas.region.box if canvas.region and run else None,
        steps_run=sampled.steps,
    )
    return Output(images, job.seeds, job.records(sampled, canvas.picture.size, details), sampled.stopped)
