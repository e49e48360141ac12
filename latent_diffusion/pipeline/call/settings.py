"""What decides a picture besides its prompt and seed: checked arguments, completed with the model's own choices."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.folder.default_sampler import default_sampler
from latent_diffusion.checkpoint.folder.tiny_folder import open_tiny
from latent_diffusion.checkpoint.prompt_forms import PromptForms
from latent_diffusion.checks import check_integer, check_name, check_number, check_size
from latent_diffusion.diffusion.guidance import Guidance
from latent_diffusion.diffusion.level import Level, Sampler
from latent_diffusion.errors import ConfigError, warn
from latent_diffusion.guidance.cfg import CFG
from latent_diffusion.pipeline.call.approximate import EXACT, Approximate, choose_approximations
from latent_diffusion.pipeline.call.guidance import OpenModel, choose_guidance
from latent_diffusion.pipeline.call.options import Options
from latent_diffusion.pipeline.call.size_ids import SizeIds
from latent_diffusion.pipeline.call.walk import Walk
from latent_diffusion.prompts.chunks import LONG_PROMPTS
from latent_diffusion.prompts.emphasis import EMPHASES

__all__ = ["Defaults", "Settings", "steps_after_strength"]

MAX_GUIDANCE = 100.0


@dataclass(frozen=True)
class Defaults:
    """What a model's folder chooses when the caller does not."""

    height: int  # px
    width: int  # px
    num_inference_steps: int
    guidance_scale: float
    sampler: str
    spacing: str

    @classmethod
    def of(cls, components: Components) -> "Defaults":
        """Read the choices from the folder's default sampler.

        Steps and guidance have no place in diffusers' files; we keep them there under `_num_inference_steps` and
        `_guidance_scale`, private names that diffusers passes over, and else take its own defaults.
        """
        config = components.scheduler_config
        default = default_sampler(config)
        if default.unfollowed:
            what = f"{components.name}: scheduler {config.get('_class_name', '')}: {'; '.join(default.unfollowed)}"
            warn(what)
        side = components.unet.config.sample_size * components.autoencoder.factor
        return cls(
            height=side,
            width=side,
            num_inference_steps=int(config.get("_num_inference_steps", 50)),
            guidance_scale=float(config.get("_guidance_scale", 5.0 if components.size_count else 7.5)),
            sampler=default.sampler,
            spacing=default.spacing,
        )


@dataclass(frozen=True)
class Settings:
    """Every number and name that decides the pixels, resolved."""

    height: int  # px the model works at
    width: int
    num_inference_steps: int
    guidance_scale: float
    guidance_rescale: float
    walk: Walk  # sampler and noise levels
    clip_skip: int | None
    size_ids: SizeIds | None = None  # what SDXL is told of the size
    emphasis: str = "a1111"  # see `prompts.emphasis`
    long_prompt: str = "chunk"  # see `prompts.chunks`
    prompt_forms: PromptForms | None = None  # which prompts are rewritten to; None = none is
    guidance: Guidance = field(default_factory=CFG)  # scale, rescale and interval within
    guidance_texts: tuple[str, ...] | None = None  # what was asked for besides scale, rescale and interval
    guidance_interval: tuple[float, float] | None = None  # shares of the steps
    guidance_slicing: bool = False  # decides memory, not pixels
    approximate: Approximate = EXACT

    @classmethod
    def resolve(
        cls,
        components: Components,
        defaults: Defaults,
        options: Options,
        open_model: OpenModel,
    ) -> "Settings":
        """Check the options and fill in the model's choices for those that are absent or None.

        `open_model` opens the weaker checkpoint of autoguidance.

        Raises:
            ConfigError: an option outside its range, an unknown name, or one that could take no effect.
        """

        def chosen(name: str, default: Any) -> Any:
            value = options.get(name)
            return default if value is None else value

        clip_skip = options.get("clip_skip")
        scale, interval = options.get("guidance_scale"), options.get("guidance_interval")
        if scale is not None:
            scale = check_number("guidance_scale", scale, MAX_GUIDANCE)
        rescale = check_number("guidance_rescale", chosen("guidance_rescale", 0.0), 1.0)
        asked = options.get("guidance")
        guidance = choose_guidance(asked, scale, defaults.guidance_scale, rescale, interval, open_model)
        height = check_size("height", chosen("height", defaults.height))
        width = check_size("width", chosen("width", defaults.width))
        walk = Walk.read(components, options, defaults.sampler, defaults.spacing)
        return cls(
            height=height,
            width=width,
            num_inference_steps=check_integer(
                "num_inference_steps",
                walk.steps or chosen("num_inference_steps", defaults.num_inference_steps),
                1,
                components.schedule.num_train_timesteps,
            ),
            guidance_scale=guidance.scale,
            guidance_rescale=rescale,
            walk=walk,
            clip_skip=None if clip_skip is None else check_integer("clip_skip", clip_skip, 0, 99),
            size_ids=SizeIds.read(components, options, height, width),
            emphasis=check_name("emphasis", chosen("emphasis", "a1111"), EMPHASES),
            prompt_forms=_prompt_forms(components, options.get("rewrite")),
            long_prompt=check_name("long_prompt", chosen("long_prompt", "chunk"), LONG_PROMPTS),
            guidance=guidance.guidance,
            guidance_texts=guidance.texts,
            guidance_interval=None if interval is None else (float(interval[0]), float(interval[1])),
            guidance_slicing=bool(options.get("guidance_slicing", False)),
            approximate=choose_approximations(
                options.get("approximate"),
                components.unet,
                partial(open_tiny, autoencoder=components.autoencoder),
            ),
        )

    @property
    def guided(self) -> bool:
        """Whether the negative prompt has any part in the picture."""
        return self.guidance.needs_negative

    @property
    def sampler(self) -> str:
        """Name of the sampler."""
        return self.walk.sampler

    @property
    def spacing(self) -> str:
        """Name of the spacing."""
        return self.walk.spacing

    @property
    def eta(self) -> float:
        """Share of noise; 0 where the sampler has no such number."""
        return self.walk.eta

    def build_sampler(self) -> Sampler:
        """Return the sampler."""
        return self.walk.build_sampler()

    def levels(self, components: Components) -> Sequence[Level]:
        """Return the noise levels to visit, the one to end in last.

        Raises:
            ConfigError: a spacing that the noise law has no place for.
        """
        return self.walk.levels(components, self.num_inference_steps)


def _prompt_forms(components: Components, rewrite: object) -> PromptForms | None:
    """Return the forms that prompts are rewritten to; an adapter brings words that the model's folder does not know.

    Raises:
        ConfigError: `rewrite` is neither True, False nor None, or True for a model that has none.
    """
    if not isinstance(rewrite, bool | None):
        raise ConfigError(f"rewrite must be True, False or None, found {rewrite!r}")
    if rewrite and components.prompt_forms is None:
        raise ConfigError(f"{components.name} does not say how its prompts were made; leave rewrite out")
    if rewrite is False or (rewrite is None and components.adapters):
        return None
    return components.prompt_forms


def steps_after_strength(steps: int, strength: float) -> int:
    """Return how many of `steps` are run at `strength`: int(steps * strength) in float64, as in diffusers.

    The product is not rounded: 100 steps at 0.29 are 28.999999999999996, so 28.

    Raises:
        ConfigError: strength outside [0, 1], or so small that no step is left (0 itself is allowed).
    """
    strength = check_number("strength", strength, 1.0)
    run = int(steps * strength)
    if strength and not run:
        least = math.ceil(1000 / steps) / 1000  # three decimals, rounded up
        raise ConfigError(
            f"strength {strength:g} of {steps} steps is less than one step; use at least {least:g}, or more steps"
        )
    return run
