"""Image to image: add noise to a picture, by `strength`, and remove it with a prompt.

Reference: Meng et al. 2021, arXiv:2108.01073 ("SDEdit"), algorithm 1.
"""

import hashlib

from latent_diffusion.data.pictures.images import ImageSource, load_image, to_tensor
from latent_diffusion.diffusion.forward import add_noise
from latent_diffusion.errors import warn
from latent_diffusion.options.call import Options, Texts
from latent_diffusion.options.option import checked, recorded_values
from latent_diffusion.options.tasks import ImageToImageOptions, RedrawingOptions
from latent_diffusion.pipeline.engine.engine import Engine
from latent_diffusion.pipeline.engine.output import Output, OutputType, Sampled, check_output_type, in_form
from latent_diffusion.pipeline.tasks.fit import fit, size_for
from latent_diffusion.pipeline.tasks.strength import late_levels
from latent_diffusion.provenance.record import ImageToImageRecord
from latent_diffusion.runtime.undisturbed import undisturbed

__all__ = ["image_to_image"]


@undisturbed()
def image_to_image(
    engine: Engine,
    prompt: Texts,
    options: ImageToImageOptions,
    *,
    image: ImageSource,
    output_type: OutputType,
) -> Output:
    """Redraw a picture; arguments and errors as for the pipeline's method."""
    check_output_type(output_type)
    engine.components.check_unmasked()
    redrawing, rest = checked(RedrawingOptions).read(options)
    picture = load_image(image)
    digest = hashlib.sha256(picture.tobytes()).hexdigest()
    height, width = size_for(picture.size, engine.defaults, options.get("height"), options.get("width"))
    sized: Options = rest | {"height": height, "width": width}
    settings = engine.settings(sized)
    picture = fit(picture, height, width, redrawing.resize_mode)
    levels = late_levels(engine.components, settings, redrawing.strength, exact_steps=redrawing.exact_steps)
    job = engine.start(prompt, settings, sized, levels=levels or None)
    autoencoder = engine.components.autoencoder
    images = to_tensor(picture)[None].to(next(autoencoder.parameters()))
    if levels:
        x = add_noise(autoencoder.to_latents(images).float(), job.initial_noise(), levels[0].alpha, levels[0].sigma)
        sampled, made = job.draw(x, options.get("on_step")), None
    else:
        warn("strength is 0: the picture is returned unchanged")
        sampled = Sampled.nothing()
        # the picture itself, not `images`, which are in the autoencoder's number format
        same = autoencoder.to_latents(images).float() if output_type == "latent" else to_tensor(picture)[None]
        same = same.to(images.device).expand(len(job.seeds), -1, -1, -1)
        made = same if output_type == "latent" else in_form(same, output_type)
    details = ImageToImageRecord(
        **recorded_values(RedrawingOptions, redrawing), image_sha256=digest, steps_run=sampled.steps
    )
    return job.output(sampled, output_type, task=details, images=made)
