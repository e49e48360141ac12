"""Classifier guidance: follow the gradient of a classifier that reads noisy latents (`diffusion/gradient_push.py`).

Reference: Dhariwal & Nichol 2021, arXiv:2105.05233, algorithm 2.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from latent_diffusion.checks import check_number
from latent_diffusion.diffusion.gradient_push import LARGEST_PUSH, push_along
from latent_diffusion.diffusion.guidance import Guidance, GuidanceContext, LogProb, Models, Stage
from latent_diffusion.errors import ConfigError

__all__ = ["ClassifierGuidance"]


@dataclass(frozen=True)
class ClassifierGuidance(Guidance):
    """Guidance by a noise-aware classifier; added to what other guidances make. Scale 0 is off."""

    neutral: ClassVar[Mapping[str, Any]] = {"scale": 0.0}

    scale: float
    log_prob: LogProb  # of the class that is wanted
    model: str = ""  # the folder of the classifier, for the record of what made a picture
    label: str = ""  # the class

    @classmethod
    def from_values(cls, values: Mapping[str, Any], models: Models) -> "ClassifierGuidance":
        """Open the classifier in the folder `model`; scale 1, the class's own law, where none is given."""
        missing = [f"{name}={what}" for name, what in (("model", "FOLDER"), ("label", "CLASS")) if not values.get(name)]
        if missing:
            raise ConfigError(
                f"guidance 'classifier' needs {' and '.join(missing)}: a trained classifier and its class"
            )
        return cls(**{"scale": 1.0, **values, "log_prob": models.log_prob(values["model"], values["label"])})

    def __post_init__(self) -> None:
        check_number("classifier: scale", self.scale, LARGEST_PUSH)

    def stages(self, context: GuidanceContext) -> tuple[Stage, ...]:
        """Return the push along the gradient."""
        return (push_along(self.log_prob, self.scale, context),) if self.scale else ()
