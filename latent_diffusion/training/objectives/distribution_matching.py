"""Distil a model into one that draws in 1 to 4 steps by matching distributions (DMD2), whole or as an adapter.

The players are in `training/losses/students/matching.py`, the mathematics in `diffusion/distribution_matching.py`. The
result draws with LCM, in the steps it was trained for and at guidance scale 1, as its folder's defaults have it.
Reference: Yin et al. 2023, arXiv:2311.18828; Yin et al. 2024, arXiv:2405.14867.
"""

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.data.batches.folder import DataConfig
from latent_diffusion.data.tensor_cache import TensorCache
from latent_diffusion.errors import ConfigError
from latent_diffusion.runtime.precision import place
from latent_diffusion.training.adapters.adapter_layers import adapt
from latent_diffusion.training.losses.students.distillation import Distillation
from latent_diffusion.training.losses.students.matching import Drawn, Fake, Matching
from latent_diffusion.training.networks.frozen_states import Sharing
from latent_diffusion.training.objectives.consistency import ConsistencyObjective, StudentSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["DistributionMatchingObjective", "DistributionMatchingSettings"]


class DistributionMatchingSettings(StudentSettings):
    """The `objective:` section."""

    steps: int = Field(default=4, ge=1, le=50)
    """Sampling steps of the student."""
    fake_updates: int = Field(default=5, ge=1)
    """Updates of the network that denoises the student's pictures, for each update of the student."""

    latent_cache_bytes: ClassVar[int] = 0
    teacher_steps: ClassVar[int] = 1
    huber: ClassVar[float] = 0.0
    target: ClassVar[None] = None


class DistributionMatchingObjective(ConsistencyObjective):
    """A teacher that stays as it is, a student that draws, and a network that denoises what it draws."""

    settings_type = DistributionMatchingSettings
    memory = frozenset({"drop_encoders"})
    player_type: ClassVar[type[Distillation]] = Matching
    player: Matching
    fake_parts: Components
    fake_modules: dict[str, nn.Module]

    def __init__(self, settings: DistributionMatchingSettings, data: DataConfig, run: Any) -> None:
        """Load the teacher, read the captions, and make the student and the network that denoises its pictures.

        Raises:
            ConfigError: pictures that are mirrored, which are not read; and as for consistency.
        """
        self.steps = settings.steps
        if any(part.flip for part in data.parts()):
            raise ConfigError("data.flip: the student draws by the captions, and no picture is read; leave it out")
        super().__init__(settings, data, run)  # pyright: ignore[reportArgumentType]  # what is absent is a constant
        shares = self.adapter is not None
        fake = Fake(self.fake_parts, self.fake_modules, run.seed, run.batch_size, shares=shares)
        self.player.fake = (fake,)
        self.players = {"fake": fake, "unet": self.player}  # the fake network first: it starts as the teacher

    def choose(self, parts: Components) -> tuple[Components, dict[str, nn.Module]]:
        """Return the student's model and what of it is trained; make the network that denoises its pictures."""
        trainable = [p for p in parts.unet.parameters() if p.requires_grad]
        chosen = super().choose(parts)
        if self.settings.adapter is None:
            unet = copy.deepcopy(parts.unet)
            self.fake_parts, self.fake_modules = replace(parts, unet=unet), {"unet": unet}
            return chosen
        for weight in trainable:  # by which layers are chosen
            weight.requires_grad_(True)
        fake = adapt(parts, self.settings.adapter, self.run.seed)  # zero changes, also where the student has a start
        parts.unet.requires_grad_(False)
        self.fake_parts, self.fake_modules = fake.components, dict(fake.modules())
        return chosen

    def grid(self) -> tuple[str, int]:
        """Return spacing and number of the times that the student is trained at: its own steps."""
        return "lcm", self.steps

    def latents(self, stored: TensorCache | None, sharing: Sharing) -> Drawn:  # pyright: ignore[reportIncompatibleMethodOverride]  # as it is used: by batch
        """Return what the student draws."""
        return Drawn(self.player, self.data)

    def prepare(self, accelerator: "Accelerator", dtype: torch.dtype) -> None:
        """Move all networks, then encode the captions."""
        place(self.fake_parts.unet, accelerator.device, dtype, self.run.precision)
        super().prepare(accelerator, dtype)
        self.player.fake[0].held = self.player.held
