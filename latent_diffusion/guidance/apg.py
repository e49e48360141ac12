"""Adaptive projected guidance: strong guidance without oversaturation.

The push of classifier-free guidance is split at x0(prompt) into a part along it, which only makes the picture louder,
and a part across it, which changes what it shows:

    push = x0(prompt) - x0(negative) + momentum * (push of the step before)
    push = push * min(1, max_norm / |push|)
    x0   = x0(prompt) + (scale - 1) * (across(push) + eta * along(push))

Done on x0, as the paper advises; on the network's output the split would be another.
Reference: Sadat et al. 2024, arXiv:2410.02416, section 4 and algorithm 1.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from latent_diffusion.checks import check_number
from latent_diffusion.diffusion.guidance import LARGEST_SCALE, Guidance, GuidanceContext, Stage, StageOrder, StepState

__all__ = ["APG"]

EACH_IMAGE = (1, 2, 3)  # dimensions of one image's latents


@dataclass(frozen=True)
class APG(Guidance):
    """Adaptive projected guidance. With eta 1, momentum 0 and no bound on the norm it is plain CFG.

    `max_norm` is the paper's for SDXL and grows with the square root of the latents' size. The paper's momentum needs
    many steps: where the push halves from one step to the next, -0.5 turns it round (seen with 15 steps).
    """

    neutral: ClassVar[Mapping[str, Any]] = {"scale": 1.0}

    weighs: ClassVar[bool] = True

    scale: float = 7.5  # 1 = the prompt alone; bears larger values than CFG, the paper takes 10 to 15
    eta: float = 0.0  # share of the part along x0(prompt) that stays; 1 = all, as CFG
    max_norm: float = 15.0  # longest push, over all values of one image's latents; inf = no bound
    momentum: float = 0.0  # of the push from step to step; below zero favours what is new, the paper takes -0.5

    def __post_init__(self) -> None:
        check_number("apg: scale", self.scale, LARGEST_SCALE)
        check_number("apg: eta", self.eta, 1.0)
        check_number("apg: max_norm", self.max_norm, math.inf)
        check_number("apg: momentum", self.momentum, 1.0, least=-1.0)

    @property
    def needs_negative(self) -> bool:
        """Whether the scale gives the negative prompt a weight."""
        return self.scale != 1.0

    def stages(self, context: GuidanceContext) -> tuple[Stage, ...]:
        """Return algorithm 1; the running push begins anew where the noise rises, for that is another path."""
        if self.scale == 1.0:
            return ()
        running: Tensor | None = None
        reached = -math.inf  # log-SNR

        def apply(now: StepState) -> Tensor:
            nonlocal running, reached
            push = now.plain - now[context.negative]
            if self.momentum and running is not None and now.level.log_snr >= reached:
                push = push + self.momentum * running
            running, reached = push, now.level.log_snr
            return now.plain + (self.scale - 1.0) * self._projected(push, now.plain)

        return (Stage(StageOrder.WEIGH, apply, needs=(context.negative,)),)

    def _projected(self, push: Tensor, plain: Tensor) -> Tensor:
        """Bound `push` (B, C, h, w) and keep `eta` of what lies along `plain`; float64, as lengths nearly cancel."""
        length = torch.linalg.vector_norm(push, dim=EACH_IMAGE, keepdim=True)
        push = push * (self.max_norm / length).clamp(max=1.0) if math.isfinite(self.max_norm) else push
        wide, axis = push.double(), plain.double()
        axis = axis / torch.linalg.vector_norm(axis, dim=EACH_IMAGE, keepdim=True).clamp(min=1e-12)
        along = (wide * axis).sum(dim=EACH_IMAGE, keepdim=True) * axis
        return (wide - (1.0 - self.eta) * along).to(push.dtype)
