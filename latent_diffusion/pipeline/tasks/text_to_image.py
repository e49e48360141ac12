"""Text to images: noise, sampler, decoder."""

from torch import Tensor

from latent_diffusion.errors import ConfigError
from latent_diffusion.options.call import Options, Texts
from latent_diffusion.pipeline.engine.engine import Engine
from latent_diffusion.pipeline.engine.output import Output, OutputType, check_output_type
from latent_diffusion.runtime.undisturbed import undisturbed

__all__ = ["text_to_image"]


@undisturbed()
def text_to_image(
    engine: Engine, prompt: Texts, options: Options, *, latents: Tensor | None, output_type: OutputType
) -> Output:
    """Draw images from text; arguments and errors as for the pipeline's call."""
    check_output_type(output_type)
    engine.components.check_unmasked()
    if latents is not None:
        options = _with_size_of(latents, options, engine.components.autoencoder.factor)
    settings = engine.settings(options)
    job = engine.start(prompt, settings, options, initial="seed" if latents is None else "latents")
    sampled = job.draw(job.initial_noise(latents), options.get("on_step"))
    return job.output(sampled, output_type)


def _with_size_of(latents: Tensor, options: Options, factor: int) -> Options:
    """Return the options with the height and width, in px, that `latents` (B, C, h, w) have."""
    if not isinstance(latents, Tensor) or latents.ndim != 4:
        found = tuple(latents.shape) if isinstance(latents, Tensor) else f"a {type(latents).__name__}"
        raise ConfigError(f"latents must be a tensor (images, channels, height, width), not {found}")
    height, width = (side * factor for side in latents.shape[-2:])
    if (options.get("height") or height, options.get("width") or width) != (height, width):
        raise ConfigError(f"latents are for {width}x{height} px; height and width must be equal to it or None")
    sized: Options = {**options, "height": height, "width": width}
    return sized
