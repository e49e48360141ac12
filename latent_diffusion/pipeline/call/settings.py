"""The settings of a picture besides its prompt and seed: checked arguments, completed with the model's defaults."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.folder.default_sampler import default_sampler
from latent_diffusion.checkpoint.folder.tiny_folder import open_tiny
from latent_diffusion.checkpoint.prompt_forms import PromptForms
from latent_diffusion.checks import check_integer, check_number, check_size
from latent_diffusion.diffusion.guidance import Guidance, Models
from latent_diffusion.diffusion.level import Level, Sampler
from latent_diffusion.errors import ConfigError, warn
from latent_diffusion.guidance.cfg import CFG
from latent_diffusion.options.call import Options, Texts
from latent_diffusion.options.option import checked
from latent_diffusion.pipeline.call.approximate import EXACT, Approximate, choose_approximations
from latent_diffusion.pipeline.call.guidance import choose_guidance
from latent_diffusion.pipeline.call.sampling_path import SamplingPath
from latent_diffusion.pipeline.call.size_ids import SizeIds
from latent_diffusion.prompts.states import Reading

__all__ = ["Defaults", "Settings", "check_cost", "steps_after_strength"]

MAX_COST = 10**12  # px times steps: 76,000 pictures of 512 px in 50 steps, or 14 of 8192 px in 1000


@dataclass(frozen=True)
class Defaults:
    """The defaults of a model's folder."""

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
        `_guidance_scale`, private names that diffusers ignores. Without them, diffusers' defaults are used.
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
    """The options of a call, checked and completed, and the objects that some of them name."""

    options: Any  # every option of `Options` as an attribute, with the model's choices filled in
    path: SamplingPath  # sampler and noise levels
    guidance: Guidance = field(default_factory=CFG)  # scale, rescale and interval within
    size_ids: SizeIds | None = None  # SDXL's size conditioning
    prompt_forms: PromptForms | None = None  # which prompts are rewritten to; None = none is
    approximate: Approximate = EXACT

    @classmethod
    def resolve(
        cls,
        components: Components,
        defaults: Defaults,
        options: Options,
        models: Models,
    ) -> "Settings":
        """Check the options and fill in the model's choices for those that are absent or None.

        `models` opens those that guide this one.

        Raises:
            ConfigError: an option outside its range, an unknown name, or one that could take no effect.
        """
        asked, _ = checked(Options).read(options)

        def chosen(name: str) -> Any:
            value = getattr(asked, name)
            return getattr(defaults, name) if value is None else value

        interval = asked.guidance_interval
        guidance = choose_guidance(
            asked.guidance,
            asked.guidance_scale,
            defaults.guidance_scale,
            asked.guidance_rescale,
            interval,
            models,
        )
        path = SamplingPath.read(components, options, defaults.sampler, defaults.spacing)
        height, width = (check_size(side, chosen(side)) for side in ("height", "width"))
        most = components.schedule.num_train_timesteps
        steps = check_integer("num_inference_steps", path.steps or chosen("num_inference_steps"), 1, most)
        tiny = partial(open_tiny, autoencoder=components.autoencoder)
        approximate = choose_approximations(asked.approximate, components.unet, tiny)
        return cls(
            options=asked.resolved(
                height=height,
                width=width,
                num_inference_steps=steps,
                guidance_scale=guidance.scale,
                guidance=guidance.texts,
                guidance_interval=None if interval is None else (float(interval[0]), float(interval[1])),
                approximate=approximate.texts,
                **asdict(path),
            ),
            path=path,
            guidance=guidance.guidance,
            size_ids=SizeIds.read(components, options, height, width),
            prompt_forms=_prompt_forms(components, asked.rewrite),
            approximate=approximate,
        )

    @property
    def height(self) -> int:
        """Height in px that the model works at."""
        return self.options.height

    @property
    def width(self) -> int:
        """Width in px that the model works at."""
        return self.options.width

    @property
    def num_inference_steps(self) -> int:
        """Steps from noise to picture."""
        return self.options.num_inference_steps

    @property
    def reading(self) -> Reading:
        """How prompts are read."""
        return Reading(self.options.emphasis, self.options.long_prompt, self.options.clip_skip)

    @property
    def guided(self) -> bool:
        """Whether the negative prompt is used."""
        return self.guidance.needs_negative

    def build_sampler(self) -> Sampler:
        """Return the sampler."""
        return self.path.build_sampler()

    def levels(self, components: Components) -> Sequence[Level]:
        """Return the noise levels to visit, the one to end in last.

        Raises:
            ConfigError: a spacing that the noise law has no place for.
        """
        return self.path.levels(components, self.num_inference_steps)


def _prompt_forms(components: Components, rewrite: bool | None) -> PromptForms | None:
    """Return the forms that prompts are rewritten to; an adapter brings words that the model's folder does not know.

    Raises:
        ConfigError: `rewrite` is True for a model that has none.
    """
    if rewrite and components.prompt_forms is None:
        raise ConfigError(f"{components.name} has no prompt forms, so prompts cannot be rewritten; leave rewrite out")
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


def check_cost(prompt: Texts, settings: Settings, options: Options, steps: int) -> None:
    """Refuse a call of excessive cost, before anything is computed.

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
