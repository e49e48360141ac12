"""Train a U-Net that also chooses the variance of each reverse step; the head of one that does not is widened.

The loss is `training/losses/hybrid.py`, the mathematics `diffusion/variance.py`. The result is a folder of
`variance_type: learned_range`, which DDPM draws with; other samplers leave the variance out.
Reference: Nichol & Dhariwal 2021, arXiv:2102.09672, section 3.1.
"""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import model_validator
from torch import nn

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.training.losses.hybrid import Hybrid, VarianceSettings
from latent_diffusion.training.networks.parts import build_parts, check_fit
from latent_diffusion.training.networks.widening import LEARNED_RANGE, widen_head
from latent_diffusion.training.objectives.unet import DenoisingSettings, UNetObjective, UNetSettings

__all__ = ["LearnedVarianceObjective", "LearnedVarianceSettings"]


class LearnedVarianceSettings(UNetSettings, VarianceSettings):
    """The `objective:` section."""

    @model_validator(mode="after")
    def _with_the_noise_of_the_bound(self) -> "LearnedVarianceSettings":
        for name in ("offset_noise", "input_perturbation", "masked", "inpainting"):
            if getattr(self, name):
                raise ValueError(f"{name}: the bound is that of whole pictures and plain noise; leave it out")
        if self.times.law == "logit_normal" or (self.times.low, self.times.high) != (0.0, 1.0):
            raise ValueError(
                "times: the bound counts every noise level; take law uniform or importance, and leave low and high out"
            )
        for name, value in LEARNED_RANGE.items():
            if self.scheduler.get(name, value) != value:
                raise ValueError(
                    f"scheduler.{name}: the result is always of DDPMScheduler, which follows a learned variance; leave "
                    "it out"
                )
        return self


class LearnedVarianceObjective(UNetObjective):
    """A whole model whose U-Net writes the mean and v."""

    settings_type: ClassVar[type[LearnedVarianceSettings]] = LearnedVarianceSettings
    memory = frozenset({"drop_encoders", "update_in_backward"})
    shards = False
    settings: LearnedVarianceSettings

    def build(self, settings: DenoisingSettings, size: int) -> Components:
        """Return the model with a head for the variance."""
        parts = build_parts(settings)
        check_fit(parts, size, learned_variance=True)
        return parts if parts.learned_variance else widen_head(parts)

    def denoising(self, trained: Mapping[str, nn.Module]) -> Hybrid:
        """Return the player."""
        run, settings = self.run, self.settings
        return Hybrid(self.components, trained, settings, settings, run.seed, run.batch_size)
