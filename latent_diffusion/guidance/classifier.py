"""Classifier guidance: follow the gradient of a classifier that reads noisy latents.

    noise estimate = noise(prompt) - sigma * scale * grad_x log p(y | x)
    so          x0 = x0(prompt) + scale * sigma^2 / alpha * grad_x log p(y | x)

Reference: Dhariwal & Nichol 2021, arXiv:2105.05233, algorithm 2.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from latent_diffusion.checks import check_number
from latent_diffusion.diffusion.guidance import Guidance, GuidanceContext, LogProb, Models, Stage, StageOrder, StepState
from latent_diffusion.errors import ConfigError

__all__ = ["ClassifierGuidance"]


@dataclass(frozen=True)
class ClassifierGuidance(Guidance):
    """Guidance by a noise-aware classifier; added to what other guidances make. Scale 0 is off.

    A level without any picture in it (alpha 0, zero terminal SNR) is left alone: x has no information there.
    """

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
        check_number("classifier: scale", self.scale, 1000.0)

    def stages(self, context: GuidanceContext) -> tuple[Stage, ...]:
        """Return algorithm 2's correction."""

        def apply(now: StepState) -> Tensor:
            t = torch.full((now.x.shape[0],), now.level.t, dtype=torch.float32, device=now.x.device)
            t = torch.as_tensor(context.denoiser.schedule.network_time(t))  # the network's time
            push = self.scale * now.level.sigma**2 / now.level.alpha
            return now.guided + push * self._gradient(now.x, t)

        return (Stage(StageOrder.PUSH, apply, active=lambda level: level.alpha > 0.0),) if self.scale else ()

    def _gradient(self, x: Tensor, t: Tensor) -> Tensor:
        """Return grad_x log p(y | x) (B, C, h, w); images do not mix, so the gradient of the sum is each one's own."""
        with torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self.log_prob(x, t).sum(), x)
        return gradient
