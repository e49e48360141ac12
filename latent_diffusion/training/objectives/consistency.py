"""Distil a model into one that draws in few steps (consistency distillation, LCM), whole or as an adapter (LCM-LoRA).

The loss is `training/losses/students/distillation.py`, the mathematics `diffusion/consistency.py`. The result draws
with the samplers LCM and TCD; a model's folder has LCM, four steps and guidance scale 1 as its defaults.
Reference: Luo et al. 2023, arXiv:2310.04378; arXiv:2311.05556.
"""

import copy
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.folder.default_sampler import with_changes
from latent_diffusion.checkpoint.folder.diffusers_folder import save_folder
from latent_diffusion.checkpoint.folder.scheduler_config import write_schedule
from latent_diffusion.checkpoint.folder.trained_times import TrainedTimes
from latent_diffusion.config import MemoryConfig
from latent_diffusion.data.batches.folder import DataConfig
from latent_diffusion.diffusion.spacing import levels
from latent_diffusion.errors import ConfigError
from latent_diffusion.models.unet import UNet
from latent_diffusion.runtime.precision import place
from latent_diffusion.samplers.lcm import LCM
from latent_diffusion.training.adapters.adapter_files import verify_adapter, write_adapter
from latent_diffusion.training.adapters.adapter_layers import AdaptedModel, AdapterSettings
from latent_diffusion.training.adapters.started_adapter import start_adapter, start_digest
from latent_diffusion.training.losses.students.distillation import Distillation, DistillationSettings
from latent_diffusion.training.monitoring.drawing import Drawing
from latent_diffusion.training.networks.frozen_weights import round_frozen
from latent_diffusion.training.networks.parts import ModelSettings
from latent_diffusion.training.networks.weight_rules import TrainSettings, choose_weights
from latent_diffusion.training.objective import Average
from latent_diffusion.training.objectives.unet import UNetObjective

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["ConsistencyObjective", "ConsistencySettings"]

logger = logging.getLogger(__name__)


class StudentSettings(ModelSettings):
    """The keys that objectives with a teacher and a student have in their `objective:` section."""

    guidance_scale: float | None = Field(default=None, ge=0)
    """Scale of the teacher's classifier-free guidance, which becomes part of the student; null: the teacher's own."""
    adapter: AdapterSettings | None = None
    """Train small changes of the teacher's layers and write an adapter's file; null: a whole U-Net. Keys below."""
    latent_cache_bytes: int = Field(default=4 * 2**30, ge=0)
    """Keep latents of all pictures in memory if they take at most this."""
    text_cache_bytes: int = Field(default=2 * 2**30, ge=0)
    """Keep text states of all captions in memory if they take at most this; 0: keep none, list no captions."""
    caption_chunks: int = Field(default=3, ge=1)
    """Chunks of 75 tokens that are read of a caption, as in drawing; what is longer is cut and counted."""
    export_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Number format of the exported weights."""
    workers: int = Field(default=1, ge=0)
    """Processes that decode pictures ahead."""

    validation: ClassVar[None] = None
    masked: ClassVar[None] = None
    inpainting: ClassVar[None] = None


class ConsistencySettings(StudentSettings, DistillationSettings):
    """The `objective:` section."""


class ConsistencyObjective(UNetObjective):
    """A teacher that stays as it is, and the student that starts as its copy."""

    settings_type = ConsistencySettings
    memory = frozenset({"base", "base_on_host", "drop_encoders"})
    shards = False
    drawing = Drawing(LCM(), "lcm")
    player_type: ClassVar[type[Distillation]] = Distillation
    scheduler: ClassVar[dict[str, Any]] = {"_class_name": "LCMScheduler"}  # of the result
    steps = 4  # of the result where the user names none
    settings: ConsistencySettings
    player: Distillation
    adapter: AdaptedModel | None
    teacher: UNet

    def __init__(self, settings: ConsistencySettings, data: DataConfig, run: Any) -> None:
        """Load the teacher, read the pictures and make the student.

        Raises:
            ConfigError: no teacher, a teacher that repaints, or settings that do not go together.
        """
        if settings.init is None:
            raise ConfigError("objective.init: give the model that is distilled")
        if settings.target == "average" and run.ema is None:
            raise ConfigError(
                "objective.target: `average` is the moving average of the weights; set ema, or target=student"
            )
        if settings.adapter is not None and set(settings.adapter.parts) != {"unet"}:
            raise ConfigError("objective.adapter.parts: student and teacher read the same text states; train [unet]")
        memory = run.memory or MemoryConfig()
        if settings.adapter is None and (memory.base is not None or memory.base_on_host):
            raise ConfigError(
                "memory: base and base_on_host are for the layers under objective.adapter; leave them out"
            )
        self.writes_frozen = settings.adapter is None
        super().__init__(settings, data, run)  # pyright: ignore[reportArgumentType]  # what is absent is a constant None
        if self.settings.adapter is not None:
            self.player.obey(self.settings.adapter.rules)
        else:
            self.frozen["teacher"] = self.teacher
            self._check_scheduler()

    def choose(self, parts: Components) -> tuple[Components, dict[str, nn.Module]]:
        """Return the student's model and what of it is trained, by name."""
        if parts.for_inpainting:
            raise ConfigError(f"objective.init: {parts.name} repaints pictures; distil the model it was made of")
        if self.settings.adapter is not None:
            self.adapter, form = start_adapter(parts, self.settings.adapter, self.run.seed)
            self.settings = self.settings.model_copy(update={"adapter": form})
            self.teacher = parts.unet.requires_grad_(False)
            parts.text_encoder.requires_grad_(False)
            return self.adapter.components, dict(self.adapter.modules())
        self.adapter = None
        self.teacher = copy.deepcopy(parts.unet).eval().requires_grad_(False)
        return parts, choose_weights(parts, TrainSettings())

    def denoising(self, trained: Mapping[str, nn.Module]) -> Distillation:
        """Return the player."""
        scale = self.settings.guidance_scale
        if scale is None:
            scale = float(self.base.scheduler_config.get("_guidance_scale", 7.5))
        logger.info("distilling %s at guidance scale %g", self.base.name, scale)
        return self.player_type(
            self.components, trained, self.teacher, self.settings, scale, self.run.seed, self.run.batch_size
        )

    def follow(self, average: Average | None) -> None:
        """Take the moving average, which makes the target unless the student does."""
        self.player.average = None if self.settings.target == "student" else average

    def prepare(self, accelerator: "Accelerator", dtype: torch.dtype) -> None:
        """Move the parts and the teacher, then encode pictures and captions."""
        super().prepare(accelerator, dtype)
        if self.adapter is None:
            place(self.teacher, accelerator.device, dtype, self.run.precision)
            if self.run.precision == "bfloat16":
                round_frozen(self.teacher)
            self.frozen["teacher"] = self.teacher

    def export(self, folder: Path, *, averaged: bool) -> None:
        """Write a whole diffusers folder that draws in few steps, or the adapter."""
        settings = self.settings
        if self.adapter is None:
            save_folder(self._result(), folder, getattr(torch, settings.export_dtype))
            return
        assert settings.adapter is not None, "it has the form of the changes"
        pictures, size = len(self.data), self.data.config.size
        write_adapter(
            folder, self.base, self.adapter, settings.adapter, self.run, settings.export_dtype,
            pictures=pictures, size=size, trained=self.trained_times(),
        )  # fmt: skip

    def grid(self) -> tuple[str, int]:
        """Return spacing and number of the times that the student is trained at: those of the teacher's steps."""
        return "trailing", self.settings.teacher_steps

    def trained_times(self) -> TrainedTimes:
        """Return the times that the student is trained at, and how it is drawn there: as by default, if these do."""
        (spacing, number), schedule = self.grid(), self.components.schedule
        sampler = str(self.scheduler["_class_name"]).removesuffix("Scheduler")
        count = "1 step" if self.steps == 1 else f"{self.steps} steps"
        how = f"sampler {sampler}, spacing {self.drawing.spacing}, {count}, guidance scale 1"
        trained = TrainedTimes(spacing, number, how)
        if not trained.others(schedule, levels(schedule, str(self.drawing.spacing), self.steps)):
            return trained
        own = trained.times(schedule)
        chosen = dict.fromkeys(own[k * number // self.steps] for k in range(self.steps))
        visited = ",".join(f"{t:g}" for t in chosen)
        return replace(trained, usage=f"sampler {sampler}, timesteps {visited}, guidance scale 1")

    def _result(self) -> Components:
        """Return the student with its default sampler; changes of `objective.scheduler` come last."""
        config = with_changes(self.components.scheduler_config, self.scheduler)
        config |= {"_num_inference_steps": self.steps, "_guidance_scale": 1.0, **self.trained_times().in_model()}
        config |= self.settings.scheduler
        return replace(self.components, scheduler_config=config)

    def _check_scheduler(self) -> None:
        """Refuse a noise law whose folders cannot name the student's sampler: they would draw by another."""
        made = self._result()
        wanted = made.scheduler_config["_class_name"]
        if write_schedule(made.schedule, made.prediction, made.scheduler_config)["_class_name"] != wanted:
            raise ConfigError(
                f"objective.init: a folder with the noise law of {self.base.name} cannot name {wanted}, by which the "
                f"student draws; train an adapter (objective.adapter), or name another in objective.scheduler"
            )

    def verify(self, folder: Path) -> None:
        """Read back what was written and compare its outputs with those of the student."""
        settings = self.settings
        if self.adapter is None:
            super().verify(folder)
            return
        assert settings.adapter is not None, "it has the form of the changes"
        verify_adapter(folder, self.base, self.adapter, settings.adapter, self.run, settings.export_dtype)

    def fingerprint(self) -> dict[str, str]:
        """Return the digests of the data, of the teacher and of the adapter the student starts from."""
        adapter = self.settings.adapter
        return super().fingerprint() | ({} if adapter is None else start_digest(adapter))
