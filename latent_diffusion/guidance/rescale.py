"""Rescaled guidance: strong guidance overexposes; give each image's network output the spread it has without it.

    output = share * output * std(output of the prompt alone) / std(output) + (1 - share) * output

Reference: Lin et al. 2023, arXiv:2305.08891, eq. 15 and 16.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from latent_diffusion.checks import check_number
from latent_diffusion.diffusion.denoiser import Denoiser
from latent_diffusion.diffusion.guidance import Guidance, GuidanceContext, Stage, StageOrder, StepState

__all__ = ["Rescale", "rescaled"]


@dataclass(frozen=True)
class Rescale(Guidance):
    """Brings the spread of the guided output back towards the unguided one's, image by image."""

    neutral: ClassVar[Mapping[str, Any]] = {"share": 0.0}

    share: float = 0.7  # 0 = off, 1 = exactly the unguided spread; the paper uses 0.7

    def __post_init__(self) -> None:
        check_number("rescale: share", self.share, 1.0)

    def stages(self, context: GuidanceContext) -> tuple[Stage, ...]:
        """Return eq. 16."""
        if not self.share:
            return ()

        def apply(now: StepState) -> Tensor:
            if now.guided is now.plain:  # nothing guided at this level, nothing to bring back
                return now.plain
            return rescaled(context.denoiser, now, now.guided, self.share)

        return (Stage(StageOrder.CORRECT, apply),)


def rescaled(denoiser: Denoiser, now: StepState, guided: Tensor, share: float) -> Tensor:
    """Return x0 (B, C, h, w) of the network output that `guided` stands for, with its spread brought back.

    Mixing outputs mixes their x0, because the map between both is linear.
    """
    output, plain = (denoiser.output(x0, now.x, now.level) for x0 in (guided, now.plain))
    ratio = plain.std(dim=(1, 2, 3), keepdim=True) / output.std(dim=(1, 2, 3), keepdim=True)
    return denoiser.x0(output * (share * ratio + (1 - share)), now.x, now.level)
