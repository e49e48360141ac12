"""Start in the middle of the path: which noise levels are visited at a strength below 1."""

import math
from collections.abc import Sequence

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.diffusion.level import Level
from latent_diffusion.errors import ConfigError
from latent_diffusion.pipeline.call.settings import Settings, steps_after_strength

__all__ = ["late_levels"]

ROUNDING = 1e-6  # 3 / 0.3 is a hair above 10


def late_levels(
    components: Components, settings: Settings, strength: float, *, exact_steps: bool = False
) -> Sequence[Level]:
    """Return the levels that are visited, the clean one last; none at all for strength 0.

    Args:
        components: the model.
        settings: the call's.
        strength: share of the path; floor(steps * strength) steps are run, as in diffusers.
        exact_steps: run all of `num_inference_steps` instead, as the end of a path of more steps.

    Raises:
        ConfigError: strength outside [0, 1], less than one step, or more steps than the model has levels.
    """
    steps = settings.num_inference_steps
    if not exact_steps:
        run = steps_after_strength(steps, strength)
        return settings.levels(components)[-run - 1 :] if run else []
    most = components.schedule.num_train_timesteps
    if not steps_after_strength(most, strength):
        return []
    path = math.ceil(steps / strength - ROUNDING)
    if path > most:
        raise ConfigError(
            f"exact_steps: {steps} steps at strength {strength:g} are the end of {path}, and the model has {most} "
            f"levels; use at most {int(most * strength + ROUNDING)} steps"
        )
    return settings.path.levels(components, path)[-steps - 1 :]
