"""Halve the sampling steps of a model (progressive distillation): run again from each student, as 16 -> 8 -> 4.

The loss is `training/losses/students/halving.py`. The first run makes the teacher's guidance part of the student; its
folder has DDIM, its number of steps and guidance scale 1 as defaults, so the next run finds it without.
Reference: Salimans & Ho 2022, arXiv:2202.00512; Meng et al. 2023, arXiv:2210.03142 (guidance).
"""

from typing import Any, ClassVar

from pydantic import Field

from latent_diffusion.data.batches.folder import DataConfig
from latent_diffusion.samplers.ddim import DDIM
from latent_diffusion.training.losses.students.distillation import Distillation
from latent_diffusion.training.losses.students.halving import Progressive
from latent_diffusion.training.monitoring.drawing import Drawing
from latent_diffusion.training.objectives.consistency import ConsistencyObjective, StudentSettings

__all__ = ["ProgressiveObjective", "ProgressiveSettings"]


class ProgressiveSettings(StudentSettings):
    """The `objective:` section."""

    steps: int = Field(default=8, ge=1, le=500)
    """Sampling steps of the student, half of the teacher's."""

    teacher_steps: ClassVar[int] = 1
    huber: ClassVar[float] = 0.0
    target: ClassVar[None] = None


class ProgressiveObjective(ConsistencyObjective):
    """A teacher that stays as it is, and a student that draws in half the steps."""

    settings_type = ProgressiveSettings
    drawing = Drawing(DDIM(), "trailing")
    player_type: ClassVar[type[Distillation]] = Progressive
    scheduler: ClassVar[dict[str, Any]] = {
        "_class_name": "DDIMScheduler",
        "clip_sample": False,
        "set_alpha_to_one": True,
        "timestep_spacing": "trailing",
    }

    def __init__(self, settings: ProgressiveSettings, data: DataConfig, run: Any) -> None:
        """Load the teacher, read the pictures and make the student."""
        self.steps = settings.steps
        super().__init__(settings, data, run)  # pyright: ignore[reportArgumentType]  # what is absent is a constant

    def grid(self) -> tuple[str, int]:
        """Return spacing and number of the times that the student is trained at: its own steps."""
        return "trailing", self.steps
