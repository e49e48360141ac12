"""The base's own predictions, with the change off, as what a trained model must keep.

    preserve       |network(x, t, class caption) - base(x, t, class caption)|^2: a subject learns its word, and the
                   class keeps its look, without pictures of the class
    masked.prior   |network(x, t, caption) - base(x, t, caption)|^2 outside a mask

The first is prior preservation (Ruiz et al. 2023, arXiv:2208.12242, section 3.3) with the base's prediction in place of
pictures that the base draws.
"""

from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.config import Section
from latent_diffusion.data.batches.loader import Batch
from latent_diffusion.diffusion.loss import Noised
from latent_diffusion.training.losses.conditions import Conditions

__all__ = ["BasePrior", "BaseSettings", "PreserveSettings"]


class PreserveSettings(Section):
    """The `objective.preserve:` section: captions whose predictions stay as the base has them."""

    replace: dict[str, str] = Field(min_length=1)
    """Texts of the captions that are replaced, in this order: `{my-cat: cat}`."""
    weight: float = Field(default=1.0, gt=0)
    """Weight of the distance to the base's prediction for these captions."""

    def of_class(self, caption: str) -> str:
        """Return a caption with the texts replaced."""
        for old, new in self.replace.items():
            caption = caption.replace(old, new)
        return caption


class BaseSettings(Section):
    """The keys of objectives beside whose changes the base stays as it is."""

    preserve: PreserveSettings | None = None
    """Keep what the base draws of the class (prior preservation); null: do not. Keys below."""


class BasePrior:
    """The predictions of the base for the samples that are trained on."""

    def __init__(
        self, base: Components, conditions: Conditions, preserve: PreserveSettings | None, outside: float
    ) -> None:
        """Take the base.

        Args:
            base: the model that stays as it is.
            conditions: what encodes captions for it.
            preserve: how captions become those of the class; None: they stay, and no such distance counts.
            outside: weight of the distance outside a mask.
        """
        self.base, self.conditions, self.preserve, self.outside = base, conditions, preserve, outside

    def of_class(self, batch: Batch) -> Batch:
        """Return the batch with the captions that the base reads."""
        if self.preserve is None:
            return batch
        return replace(batch, captions=tuple(self.preserve.of_class(caption) for caption in batch.captions))

    @torch.no_grad()
    def __call__(self, noised: Noised, cond: Conditioning) -> Tensor:
        """Return the base's output (B, C, h, w) under `cond`."""
        unet = self.base.unet
        return unet(noised.x, noised.time, unet.project(cond)).to(noised.target.dtype)
