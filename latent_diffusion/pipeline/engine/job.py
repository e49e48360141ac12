"""One call of the pipeline: the parts, encoded prompts, seeds and settings."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.files.weights import dtype_name
from latent_diffusion.checkpoint.model_hash import model_hash
from latent_diffusion.conditioning import Blend, Conditioning
from latent_diffusion.diffusion.approximation import Scope, approximated
from latent_diffusion.diffusion.known import Keep
from latent_diffusion.diffusion.level import Denoise, Level, OnStep, Sampler
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.errors import ConfigError
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.models.tiny_autoencoder import TinyAutoencoder
from latent_diffusion.models.unet import UNet
from latent_diffusion.options.call import Options
from latent_diffusion.options.option import recorded_values
from latent_diffusion.pipeline.call.seeds import Variation
from latent_diffusion.pipeline.call.settings import Settings
from latent_diffusion.pipeline.engine.groups import Group, change_at, join_rows
from latent_diffusion.pipeline.engine.machine import Machine
from latent_diffusion.pipeline.engine.output import Images, Output, OutputType, Sampled, check_finite, finish
from latent_diffusion.pipeline.engine.prompts import Prompts
from latent_diffusion.pipeline.engine.refine import hand_over
from latent_diffusion.provenance.record import TASK_FIELDS, Record, RefinerRecord, Task
from latent_diffusion.runtime.residency import moved

__all__ = ["Job"]


@dataclass(frozen=True)
class Job:
    """Everything that a call fixes before its first step; made anew for every call."""

    components: Components
    machine: Machine
    settings: Settings
    levels: Sequence[Level]  # levels that the sampler visits
    prompts: Prompts  # of B images
    noise: NoiseSource  # B streams
    seeds: list[int]  # B
    initial: str  # source of the initial noise: "seed", "generator" or "latents"
    variation: Variation | None = None  # other seeds whose noise is blended in
    concat: Tensor | None = None  # (1, C', h, w) extra input channels of an inpainting U-Net
    keep: Keep | None = None  # what keeps the known part of a picture
    refiner: "Job | None" = None  # the same call for the second model
    refined_below: float = 0.0  # training time at which it takes over

    def draw(self, x: Tensor, on_step: OnStep | None, *, sampler: Sampler | None = None) -> Sampled:
        """Run the sampler from `x` (B, C, h, w) at the first level: every step, or until `on_step` returns False.

        If `on_step` stopped it, the latents are the last estimate of x0.

        Args:
            x: float32 on the device.
            on_step: called after each step.
            sampler: None = that of the settings.

        Raises:
            DivergedError: the latents became NaN or infinite.
        """
        denoise, sampler = self.bind(), sampler or self.settings.build_sampler()
        done, latents, stopped = 0, x, False
        for step in sampler(denoise, x, self.levels, self.machine.noise(self.noise)):
            done, latents = done + 1, step.x
            if on_step is not None and on_step(step) is False:
                latents, stopped = step.x0, True
                break
        check_finite(latents, f"the latents after {done} steps")
        return Sampled(latents, done, stopped)

    def output(
        self,
        sampled: Sampled,
        form: OutputType = "pil",
        size: tuple[int, int] | None = None,
        task: Task | None = None,
        images: Images | None = None,
    ) -> Output:
        """Return the finished images with their records.

        Args:
            sampled: what `draw` returned.
            form: of the images.
            size: width and height of the images in px; None = the model's working size.
            task: the task, for the records; None = text to image.
            images: the decoded latents, if the caller has them; None = decode here.

        Raises:
            DivergedError: the decoder made NaN or infinity.
        """
        images = finish(self.decoder, sampled.latents, form) if images is None else images
        size = (self.settings.width, self.settings.height) if size is None else size
        return Output(images, self.seeds, self.records(sampled, size, task), sampled.stopped)

    def bind(self) -> Denoise:
        """Return the guided estimator of x0 for these prompts, and for the refiner's where it takes over."""
        denoise = self._bind_all()
        if self.refiner is None:
            return denoise
        return hand_over(denoise, replace(self.refiner, keep=self.keep).bind(), self.refined_below)

    def _bind_all(self) -> Denoise:
        waiting = {group.components.unet for group in self.prompts.groups}  # several where prompts ask for adapters
        unets = {unet: self.machine.at_work(unet) for unet in waiting}
        rows = [(group.rows, self._bind(group, unets[group.components.unet])) for group in self.prompts.groups]
        return join_rows(rows, self.machine.device)

    def _bind(self, group: Group, unet: UNet) -> Denoise:
        """Return the estimator for the images of one group."""
        parts, settings = group.components, self.settings
        exact = parts.denoiser(unet, self.machine.dtype)
        scope = Scope(self.levels, self.latent_size, self.machine.device)
        denoiser = approximated(exact, settings.approximate.parts, scope)
        bound = []
        for conditions in (each.map(self._placed) for each in group.conditions):
            first = conditions.prompt.terms[0][0] if isinstance(conditions.prompt, Blend) else conditions.prompt
            bound.append(
                settings.guidance.bind(
                    denoiser,
                    conditions.prompt,
                    first if conditions.negative is None else conditions.negative,  # where it is None it has no part
                    empty=conditions.empty,
                    levels=self.levels,
                    slicing=settings.options.guidance_slicing,
                    keep=self.keep,
                )
            )
        return change_at(bound, group.timeline, self.levels)

    def _placed(self, cond: Conditioning) -> Conditioning:
        """Return `cond` on the device, with the extra input channels."""
        concat = None if self.concat is None else self.concat.expand(len(cond), -1, -1, -1)
        return replace(cond, concat=concat).to(self.machine.device)

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents."""
        factor = self.components.autoencoder.factor
        return self.settings.height // factor, self.settings.width // factor

    @property
    def decoder(self) -> AutoencoderKL | TinyAutoencoder:
        """The decoder from latents to pictures, on the device."""
        tiny = self.settings.approximate.decoder
        if tiny is None:
            return self.components.autoencoder
        twin = moved(tiny, self.machine.device)  # it may be the caller's, who may use it elsewhere
        self.machine.speed_up(twin)
        return twin

    def initial_noise(self, latents: Tensor | None = None) -> Tensor:
        """Return x (B, C, h, w) float32 of unit variance on the device: drawn, or `latents`.

        Raises:
            ConfigError: `latents` of another shape, or not finite.
        """
        shape = (self.components.autoencoder.config.latent_channels, *self.latent_size)
        if latents is None:
            return self.noise.draw(shape).to(self.machine.device)
        if latents.is_meta:
            raise ConfigError("latents are on the device meta, which has no values; give them on the CPU or a GPU")
        if tuple(latents.shape) != (len(self.noise), *shape) or not latents.isfinite().all():
            raise ConfigError(f"latents must be finite {(len(self.noise), *shape)}, not {tuple(latents.shape)}")
        return latents.to(device=self.machine.device, dtype=torch.float32)

    def records(self, sampled: Sampled, size: tuple[int, int], task: Task | None = None) -> list[Record]:
        """Return what made each image; `size` is the width and height of the files in px, `task` what was done."""
        shared = {
            **recorded_values(Options, self.settings.options),
            **self._of_model(),
            "model": self.components.name,
            "device": self.machine.device.type,
            "open_clip": bool(self.settings.options.clip_skip) and self.components.open_clip,
            "vae": self.components.vae,
            "vae_hash": _digest(self.components.vae_file),
            "vae_dtype": dtype_name(self.machine.vae_dtype),
            "width": size[0],
            "height": size[1],
            "initial": self.initial,
            "stopped_after": sampled.steps if sampled.stopped else None,
        }
        if task is not None:
            shared[TASK_FIELDS[type(task)]] = task
        if self.refiner is not None:
            refined_by = RefinerRecord(**self.refiner._of_model())
            name = self.refiner.components.name
            shared |= {"refiner": name, "refined_below": self.refined_below, "refined_by": refined_by}
        return [Record(**(shared | self._of_image(k)), seed=seed) for k, seed in enumerate(self.seeds)]

    def _of_model(self) -> dict[str, Any]:
        """Return the fields of a record that a model has, the first or the refiner."""
        ids = self.settings.size_ids
        return {
            "model_hash": _digest(self.components.source),
            "dtype": dtype_name(self.machine.dtype),
            **asdict(self.components.overrides),
            "adapters": self.components.adapters,
            "size_ids": None if ids is None else ids.positive,
            "negative_size_ids": None if ids is None else ids.negative,
        }

    def _of_image(self, k: int) -> dict[str, Any]:
        """Return the fields of a record that image `k` has for itself."""
        return {
            "prompt": self.prompts.texts[k],
            "read_as": self.prompts.read_as[k],
            "negative_prompt": self.prompts.negative_texts[k],
            "prompt_2": self.prompts.second[k],
            "negative_prompt_2": self.prompts.negative_second[k],
            "adapters": next(group.components.adapters for group in self.prompts.groups if k in group.rows),
            "variation_seed": self.variation.seeds[k] if self.variation else None,
            "variation_strength": self.variation.shares[k] if self.variation else 0.0,
        }


def _digest(source: Path | None) -> str | None:
    """Return the hash of what was read from disk; None = it was made in memory, or is gone."""
    return None if source is None or not source.exists() else model_hash(source)
