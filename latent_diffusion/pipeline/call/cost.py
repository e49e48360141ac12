"""A cap on what one call may ask for: a slip of the finger is answered at once, not by hours or by all the memory."""

from collections.abc import Sequence

from torch import Tensor

from latent_diffusion.errors import ConfigError
from latent_diffusion.options.call import Options, Texts
from latent_diffusion.pipeline.call.settings import Settings

__all__ = ["MAX_COST", "check_cost"]

MAX_COST = 10**12  # px times steps: 76,000 pictures of 512 px in 50 steps, or 14 of 8192 px in 1000


def check_cost(prompt: Texts, settings: Settings, options: Options, steps: int) -> None:
    """Refuse a call that is out of all proportion, before anything is computed.

    Args:
        prompt: one text or several; None with `prompt_embeds`.
        settings: of the call.
        options: of the call.
        steps: what the sampler will take.

    Raises:
        ConfigError: images times pixels times steps are more than `MAX_COST`.
    """
    embeds, each = options.get("prompt_embeds"), options.get("num_images_per_prompt", 1)
    # what is no list and no number counts once here, and is refused where it is read
    prompts = len(prompt) if isinstance(prompt, Sequence) and not isinstance(prompt, str) else 1
    if isinstance(embeds, Tensor) and embeds.ndim:
        prompts = len(embeds)
    images = prompts * (each if isinstance(each, int) else 1)
    if images * settings.width * settings.height * steps > MAX_COST:
        most = max(1, MAX_COST // (settings.width * settings.height * steps))
        raise ConfigError(
            f"{images} images of {settings.width}x{settings.height} px in {steps} steps are too much for one call; "
            f"at most {most} such images"
        )
