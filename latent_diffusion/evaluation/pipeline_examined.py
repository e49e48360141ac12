"""A pipeline as the examination sees it."""

import torch
from torch import Tensor

from latent_diffusion.errors import ConfigError
from latent_diffusion.evaluation.clip_score import ImageTextModel
from latent_diffusion.evaluation.evaluate import Examined
from latent_diffusion.evaluation.pipeline_likelihood import latent_likelihood
from latent_diffusion.pipeline.pipeline import LatentDiffusionPipeline

__all__ = ["examine_pipeline"]


def examine_pipeline(
    pipe: LatentDiffusionPipeline,
    name: str,
    *,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    guidance_interval: tuple[float, float] | None = None,
    sampler: str | None = None,
    clip: ImageTextModel | None = None,
) -> Examined:
    """Return `pipe`, with these settings (None = the model's own), as something to examine at its own size.

    Raises:
        ConfigError: the model's pictures are not square.
    """
    size = pipe.defaults.height
    if pipe.defaults.width != size:
        raise ConfigError(f"pictures of {pipe.defaults.width}x{size} px cannot be evaluated; they must be square")

    def generate(prompts: list[str], seeds: list[int]) -> Tensor:
        out = pipe(
            prompts,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            sampler=sampler,
            emphasis="none",  # captions are text, brackets and all, and are read as training reads them
            rewrite=False,
            long_prompt="truncate",
            seed=seeds,
            output_type="pt",
        )
        assert isinstance(out.images, Tensor), 'output_type "pt" gives a tensor'
        return out.images * 2 - 1

    @torch.no_grad()
    def reconstruct(images: Tensor) -> Tensor:
        autoencoder = pipe.components.autoencoder
        return autoencoder.to_images(autoencoder.to_latents(images.to(pipe.device)))

    return Examined(name, size, generate, reconstruct, clip, latent_likelihood(pipe))
