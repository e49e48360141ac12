"""A second model for the end of the path: SDXL's refiner takes over below a noise level.

Both models estimate x0 from the same x, so any sampler sees one estimator, and its history goes on across the change.
Reference: Balaji et al. 2022, arXiv:2211.01324, section 4 (experts by noise level); Podell et al. 2023,
arXiv:2307.01952, section 2.5.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checks import check_number
from latent_diffusion.diffusion.guidance import Guidance
from latent_diffusion.diffusion.level import Denoise, Level
from latent_diffusion.errors import ConfigError
from latent_diffusion.pipeline.call.options import Options, Texts
from latent_diffusion.pipeline.engine.prompts import read_prompts

if TYPE_CHECKING:
    from latent_diffusion.pipeline.engine.engine import Engine
    from latent_diffusion.pipeline.engine.job import Job

__all__ = ["hand_over", "refined"]

SWITCH = 0.8  # share of the path that the first model runs, as its authors published
NOT_READ = ("prompt_2", "negative_prompt_2", "target_size", "negative_target_size", "refiner", "refiner_switch")
EMBEDS = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")


def hand_over(first: Denoise, second: Denoise, time: float) -> Denoise:
    """Return the estimator that is `first` at training times from `time` up, and `second` below."""

    def denoise(x: Tensor, level: Level) -> Tensor:
        return (first if level.t >= time else second)(x, level)

    return denoise


def refined(job: "Job", prompt: Texts, options: Options) -> "Job":
    """Return the job with the refiner that `options` name at the end of its path, or as it is where they name none.

    The refiner reads the same prompts without their adapters, which belong to the first model.

    Raises:
        ConfigError: no pipeline, one of other latents or another noise law, or embeddings in place of prompts.
    """
    if options.get("refiner") is None:
        if options.get("refiner_switch") is not None:
            raise ConfigError("refiner_switch has no effect without a refiner; leave it out")
        return job
    engine: Engine | None = getattr(options.get("refiner"), "engine", None)
    if engine is None:
        raise ConfigError("refiner is no pipeline; give what from_pretrained returned")
    _check_fit(job.components, engine.components)
    for name in EMBEDS:
        if options.get(name) is not None:
            raise ConfigError(f"{name}: a refiner reads prompts as texts; leave one of both out")
    share = check_number("refiner_switch", SWITCH if (given := options.get("refiner_switch")) is None else given, 1.0)
    mine: Any = {name: value for name, value in options.items() if name not in NOT_READ}
    mine |= {"height": job.settings.height, "width": job.settings.width}
    if not isinstance(options.get("guidance"), Guidance):  # an object has its own scale
        mine["guidance_scale"] = job.settings.guidance_scale
    settings = engine.settings(mine)
    parts = engine.components
    prompts = read_prompts(lambda tags: parts, prompt, mine, settings, max(len(job.levels) - 1, 1))
    steps = parts.schedule.num_train_timesteps
    refiner = replace(job, components=engine.components, machine=engine.machine, settings=settings, prompts=prompts)
    return replace(job, refiner=refiner, refined_below=round(steps * (1 - share)))


def _check_fit(base: Components, refiner: Components) -> None:
    """Check that both models mean the same by x.

    Raises:
        ConfigError: other latents, another noise law, or a U-Net that wants a picture.
    """
    ours, theirs = base.autoencoder.config, refiner.autoencoder.config
    pairs = {
        "latent_channels": (ours.latent_channels, theirs.latent_channels),
        "scaling_factor": (ours.scaling_factor, theirs.scaling_factor),
        "noise schedule": (base.schedule, refiner.schedule),
        "input channels": (base.unet.config.out_channels, refiner.unet.config.in_channels),
    }
    for name, (wanted, found) in pairs.items():
        if wanted != found:
            raise ConfigError(f"{refiner.name} cannot refine {base.name}: its {name} is {found}, not {wanted}")
