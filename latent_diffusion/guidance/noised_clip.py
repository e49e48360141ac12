"""CLIP guidance: follow the gradient of how well the prompt fits the noisy latent (`diffusion/gradient_push.py`).

The score of a CLIP of noisy latents (`models/latent_clip.py`) is log p(c | x_t) but for a constant in x, so it stands
where classifier guidance has the probability of a class: scale 1 is Bayes' rule.
Reference: Nichol et al. 2021 (GLIDE), arXiv:2112.10741, section 2.4, whose gradient is that of f(x_t) . g(c).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from latent_diffusion.checks import check_number
from latent_diffusion.conditioning import Blend
from latent_diffusion.diffusion.gradient_push import LARGEST_PUSH, push_along
from latent_diffusion.diffusion.guidance import Guidance, GuidanceContext, LogProb, Models, Prompt, Stage, TextScore
from latent_diffusion.errors import ConfigError

__all__ = ["ClipGuidance"]


@dataclass(frozen=True)
class ClipGuidance(Guidance):
    """Guidance by a noise-aware CLIP towards the prompt; added to what other guidances make. Scale 0 is off.

    The negative prompt has no part in it. A part of the prompt with a weight below 0 ("... AND fog :-1") is moved away
    from.
    """

    neutral: ClassVar[Mapping[str, Any]] = {"scale": 0.0}

    scale: float
    score: TextScore
    model: str = ""  # the folder of the CLIP, for the record of what made a picture

    @classmethod
    def from_values(cls, values: Mapping[str, Any], models: Models) -> "ClipGuidance":
        """Open the CLIP in the folder `model`; scale 1, Bayes' rule, where none is given."""
        if not values.get("model"):
            raise ConfigError("guidance 'noised_clip' needs model=FOLDER: a trained CLIP of noisy latents")
        return cls(**{"scale": 1.0, **values, "score": models.text_score(values["model"])})

    def __post_init__(self) -> None:
        check_number("noised_clip: scale", self.scale, LARGEST_PUSH)

    def stages(self, context: GuidanceContext) -> tuple[Stage, ...]:
        """Return the push along the gradient."""
        if not self.scale:
            return ()
        return (push_along(self._log_prob(context.conditions[0]), self.scale, context),)

    def _log_prob(self, prompt: Prompt) -> LogProb:
        """Return log p(prompt | x) but for a constant; of a blend, the weighted sum of its terms'."""
        terms = prompt.terms if isinstance(prompt, Blend) else ((prompt, 1.0),)
        with torch.inference_mode(False):  # gradients with respect to x pass through what is made of the texts
            parts = [(self.score(cond.context.detach().clone()), weight) for cond, weight in terms]

        def log_prob(x: Tensor, t: Tensor) -> Tensor:
            return torch.stack([weight * score(x, t) for score, weight in parts]).sum(dim=0)

        return log_prob
