"""A second model for the end of the path: SDXL's refiner takes over below a noise level.

Both models estimate x0 from the same x, so any sampler sees one estimator, and its history goes on across the change.
Reference: Balaji et al. 2022, arXiv:2211.01324, section 4 (experts by noise level); Podell et al. 2023,
arXiv:2307.01952, section 2.5.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checks import check_number
from latent_diffusion.diffusion.guidance import Guidance
from latent_diffusion.diffusion.level import Denoise, Level
from latent_diffusion.errors import ConfigError
from latent_diffusion.options.call import Options, Texts
from latent_diffusion.pipeline.call.settings import Settings
from latent_diffusion.pipeline.engine.machine import Machine
from latent_diffusion.pipeline.engine.prompts import Prompts, read_prompts

__all__ = ["Refined", "hand_over", "read_refiner"]

SWITCH = 0.8  # share of the path that the first model runs, as its authors published
NOT_READ = ("prompt_2", "negative_prompt_2", "target_size", "negative_target_size", "refiner", "refiner_switch")
EMBEDS = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")


def hand_over(first: Denoise, second: Denoise, time: float) -> Denoise:
    """Return the estimator that is `first` at training times from `time` up, and `second` below."""

    def denoise(x: Tensor, level: Level) -> Tensor:
        return (first if level.t >= time else second)(x, level)

    return denoise


@dataclass(frozen=True)
class Refined:
    """The refiner's part of a call."""

    components: Components
    machine: Machine
    settings: Settings
    prompts: Prompts
    below: float  # training time at which it takes over


def read_refiner(
    base: Components, settings: Settings, levels: Sequence[Level], prompt: Texts, options: Options
) -> Refined | None:
    """Return the refiner that `options` name for the end of the path, or None where they name none.

    The refiner reads the same prompts without their adapters, which belong to the first model.

    Args:
        base: the first model.
        settings: those of the first model.
        levels: what the sampler will visit.
        prompt: the call's.
        options: the call's.

    Raises:
        ConfigError: no pipeline, one of other latents or another noise law, or embeddings in place of prompts.
    """
    refiner, given = options.get("refiner"), options.get("refiner_switch")
    if refiner is None:
        if given is not None:
            raise ConfigError("refiner_switch has no effect without a refiner; leave it out")
        return None
    engine = getattr(refiner, "engine", None)
    if engine is None:
        raise ConfigError("refiner is not a pipeline; give the result of from_pretrained")
    parts: Components = engine.components
    _check_fit(base, parts)
    for name in EMBEDS:
        if options.get(name) is not None:
            raise ConfigError(f"{name}: a refiner needs prompts as text; leave one of the two out")
    share = check_number("refiner_switch", SWITCH if given is None else given, 1.0)
    own: Any = {name: value for name, value in options.items() if name not in NOT_READ}
    own |= {"height": settings.height, "width": settings.width}
    if not isinstance(options.get("guidance"), Guidance):  # an object has its own scale
        own["guidance_scale"] = settings.options.guidance_scale
    chosen = engine.settings(own)
    prompts = read_prompts(lambda tags: parts, prompt, own, chosen, max(len(levels) - 1, 1))
    return Refined(parts, engine.machine, chosen, prompts, round(parts.schedule.num_train_timesteps * (1 - share)))


def _check_fit(base: Components, refiner: Components) -> None:
    """Check that both models mean the same by x.

    Raises:
        ConfigError: other latents, another noise law, or a U-Net that wants a picture.
    """
    for model in (base, refiner):
        if model.learned_variance:
            raise ConfigError(f"{model.name} has a learned variance, which two models cannot share; leave refiner out")
    ours, theirs = base.autoencoder.config, refiner.autoencoder.config
    pairs = {
        "latent_channels": (ours.latent_channels, theirs.latent_channels),
        "scaling_factor": (ours.scaling_factor, theirs.scaling_factor),
        "noise schedule": (base.schedule, refiner.schedule),
        "input channels": (ours.latent_channels, refiner.unet.config.in_channels),
    }
    for name, (wanted, found) in pairs.items():
        if wanted != found:
            raise ConfigError(f"{refiner.name} cannot refine {base.name}: its {name} is {found}, not {wanted}")
