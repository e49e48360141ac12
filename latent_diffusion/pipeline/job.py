"""One call of the pipeline once its arguments are read: the parts put to work for these prompts and seeds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.diffusion.denoiser import Denoiser
from latent_diffusion.diffusion.level import Denoise, Level
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.errors import ConfigError
from latent_diffusion.pipeline.prompts import Prompts
from latent_diffusion.pipeline.record import InpaintRecord, Record
from latent_diffusion.pipeline.sampling import Sampled
from latent_diffusion.pipeline.settings import Settings

__all__ = ["Job"]


@dataclass(frozen=True)
class Job:
    """What a call has fixed before its first step; made anew for every call."""

    components: Components
    device: torch.device
    dtype: torch.dtype  # the U-Net's
    settings: Settings
    prompts: Prompts  # of B images
    noise: NoiseSource  # B streams
    seeds: list[int]  # B
    initial: str  # where the first noise comes from: "seed", "generator" or "latents"
    concat: Tensor | None = None  # (1, C', h, w) extra input channels of an inpainting U-Net

    def told(self, concat: Tensor) -> "Job":
        """Return the same job with extra input channels (1, C', h, w) for the U-Net, the same for every image."""
        return replace(self, concat=concat)

    def bind(self, levels: Sequence[Level] | None = None) -> Denoise:
        """Return the guided estimator of x0 for these prompts.

        Args:
            levels: those the sampler will visit, to which shares of the steps refer; None = all of the settings'.
        """
        parts, prompts = self.components, self.prompts
        positive = self._placed(prompts.positive)
        return self.settings.guidance.bind(
            Denoiser(parts.unet, parts.schedule, parts.prediction, self.dtype),
            positive,
            positive if prompts.negative is None else self._placed(prompts.negative),
            empty=None if prompts.empty is None else self._placed(prompts.empty),
            levels=self.settings.levels(parts) if levels is None else levels,
            slicing=self.settings.guidance_slicing,
        )

    def _placed(self, cond: Conditioning) -> Conditioning:
        """Return `cond` on the device, with the extra input channels."""
        concat = None if self.concat is None else self.concat.expand(len(cond), -1, -1, -1)
        return replace(cond, concat=concat).to(self.device)

    def initial_noise(self, latents: Tensor | None = None) -> Tensor:
        """Return x (B, C, h, w) float32 of unit variance on the device: drawn, or `latents`.

        Raises:
            ConfigError: `latents` of another shape, or not finite.
        """
        factor = self.components.autoencoder.factor
        shape = (
            self.components.autoencoder.config.latent_channels,
            self.settings.height // factor,
            self.settings.width // factor,
        )
        if latents is None:
            return self.noise.draw(shape).to(self.device)
        if tuple(latents.shape) != (len(self.noise), *shape) or not latents.isfinite().all():
            raise ConfigError(f"latents must be finite {(len(self.noise), *shape)}, not {tuple(latents.shape)}")
        return latents.to(device=self.device, dtype=torch.float32)

    def records(self, sampled: Sampled, size: tuple[int, int], inpaint: InpaintRecord | None = None) -> list[Record]:
        """Return what made each image; `size` is the width and height of the files in px."""
        settings = self.settings
        return [
            Record(
                model=self.components.name,
                prompt=self.prompts.texts[k],
                negative_prompt=self.prompts.negative_texts[k],
                seed=seed,
                num_inference_steps=settings.num_inference_steps,
                guidance_scale=settings.guidance_scale,
                guidance_rescale=settings.guidance_rescale,
                guidance=settings.guidance_texts,
                guidance_interval=settings.guidance_interval,
                sampler=settings.sampler,
                spacing=settings.spacing,
                eta=settings.eta,
                clip_skip=settings.clip_skip,
                size_ids=None if settings.size_ids is None else settings.size_ids.positive,
                negative_size_ids=None if settings.size_ids is None else settings.size_ids.negative,
                prompt_2=self.prompts.second[k],
                negative_prompt_2=self.prompts.negative_second[k],
                width=size[0],
                height=size[1],
                work_width=settings.width,
                work_height=settings.height,
                dtype=str(self.dtype).removeprefix("torch."),
                device=self.device.type,
                initial=self.initial,
                stopped_after=sampled.steps if sampled.stopped else None,
                inpaint=inpaint,
            )
            for k, seed in enumerate(self.seeds)
        ]
