"""Inpainting around the sampler: initial latents, replacement of the known part, paste of the repainted pixels.

Samplers are unchanged: `diffusion.known` keeps the known part, an inpainting U-Net reads it from additional
input channels, and the pixels outside the mask are never written.
"""

from dataclasses import replace

from latent_diffusion.adapters.lora_file import Adapter
from latent_diffusion.checkpoint.components import Components
from latent_diffusion.data.pictures.images import ImageSource
from latent_diffusion.diffusion.resample import Resampled
from latent_diffusion.errors import ConfigError, warn
from latent_diffusion.inpainting.canvas import Canvas
from latent_diffusion.inpainting.masks import FULL, REPAINT_FROM
from latent_diffusion.inpainting.repainting import Repainting
from latent_diffusion.options.call import Texts
from latent_diffusion.options.option import recorded_values
from latent_diffusion.options.tasks import InpaintOptions, RepaintingOptions
from latent_diffusion.pipeline.engine.engine import Engine
from latent_diffusion.pipeline.engine.output import Output, Sampled, decode
from latent_diffusion.pipeline.tasks.strength import late_levels
from latent_diffusion.provenance.record import InpaintRecord
from latent_diffusion.runtime.undisturbed import undisturbed

__all__ = ["inpaint"]


@undisturbed()
def inpaint(
    engine: Engine,
    prompt: Texts,
    options: InpaintOptions,
    *,
    image: ImageSource,
    mask_image: ImageSource | None,
    added: tuple[int, int, int, int] | None = None,
) -> Output:
    """Repaint the white part of a mask; arguments and errors as for the pipeline's method.

    `added` are the px that outpainting added on the left, right, top and bottom, for the record.
    """
    repainting, rest = Repainting.read(options)
    if mask_image is None:
        if repainting.mask_channel != "alpha":
            raise ConfigError(
                "inpaint: no mask; give mask_image (--mask), or mask_channel 'alpha' for the picture's own"
            )
        mask_image = image
    if repainting.inpainting_adapter:
        engine = engine.repainting
    own = engine.adapters.own
    settings = engine.settings(rest)
    parts = engine.components
    _check_channels(parts, repainting)
    levels = late_levels(parts, settings, repainting.strength, exact_steps=repainting.exact_steps)
    canvas = Canvas.read(image, mask_image, repainting, (settings.width, settings.height))
    job = engine.start(prompt, settings, rest, levels=levels)
    if canvas.region is None or not levels:
        why = "strength is 0"
        if canvas.region is None:
            asked = "any" if repainting.mask_mode == "soft" else f"{REPAINT_FROM} or more"
            why = f"the mask has no white ({asked} of {FULL}): its largest value is {canvas.brightest}"
        warn(f"nothing to repaint: {why}; the input is returned unchanged")
        sampled, images = Sampled.nothing(), [canvas.unchanged() for _ in job.seeds]
    else:
        x = job.initial_noise()
        filled = repainting.masked_content == "noise" and repainting.start != "noise"
        filler = job.noise.draw(x.shape[1:]) if filled else None
        known = canvas.encode(parts.autoencoder, filler, channels=parts.for_inpainting)
        job = replace(job, concat=known.channels, keep=known.keep(levels) if repainting.latent_blend else None)
        sampler = settings.build_sampler()
        if repainting.resample:
            sampler = Resampled(sampler, repainting.resample, repainting.jump_length)
        x = known.start(repainting.start, x, levels[0])
        sampled = job.draw(x, rest.get("on_step"), sampler=sampler)
        images = canvas.paste(decode(job.decoder, sampled.latents), len(levels) - 1)
    return job.output(sampled, size=canvas.picture.size, task=_details(canvas, sampled, added, own), images=images)


def _check_channels(components: Components, repainting: Repainting) -> None:
    """Check that the U-Net is a plain one or one for inpainting, and that something keeps the rest of the picture.

    Raises:
        ConfigError: a U-Net that reads something else, or `latent_blend` False with a plain U-Net.
    """
    channels, latents = components.unet.config.in_channels, components.autoencoder.config.latent_channels
    if not components.plain and not components.for_inpainting:
        raise ConfigError(
            f"{components.name}: its U-Net reads {channels} channels; inpainting works with {latents} (any model) or "
            f"{2 * latents + 1} (an inpainting model)"
        )
    if components.plain and not repainting.latent_blend:
        raise ConfigError(
            f"latent_blend False: the U-Net of {components.name} reads {channels} channels and has no input for "
            "the picture; leave it out, or use an inpainting model or adapter"
        )


def _details(
    canvas: Canvas, sampled: Sampled, added: tuple[int, int, int, int] | None, own: Adapter | None
) -> InpaintRecord:
    repainting = canvas.settings
    resolved = repainting.resolved(start_from=repainting.start, inpainting_adapter=own is not None)
    image, mask = canvas.hashes(added)
    return InpaintRecord(
        **recorded_values(RepaintingOptions, resolved),
        image_sha256=image,
        mask_sha256=mask,
        box=canvas.region.box if canvas.region and sampled.steps else None,
        steps_run=sampled.steps,
        added=added,
        adapter_hash=None if own is None else own.report.hash,
    )
