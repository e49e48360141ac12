"""The likelihood of pictures under a pipeline's model."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from latent_diffusion.diffusion.likelihood import hutchinson, negative_log_likelihood, path_to_noise
from latent_diffusion.evaluation.caption_bits import LatentLikelihood
from latent_diffusion.pipeline.pipeline import LatentDiffusionPipeline
from latent_diffusion.randomness import normal

__all__ = ["latent_likelihood"]

STEPS = 50
"""Steps of the ODE, of two evaluations each."""


def latent_likelihood(pipe: LatentDiffusionPipeline, steps: int = STEPS, probes: int = 1) -> LatentLikelihood | None:
    """Return the likelihood under `pipe`'s model, without guidance; None where its U-Net reads more than a prompt.

    Args:
        pipe: the model.
        steps: of the ODE.
        probes: random directions for the divergence; each costs one backward pass an evaluation.
    """
    parts = pipe.components
    if (
        parts.unet.config.added_width is not None
        or parts.unet.config.in_channels != parts.autoencoder.config.latent_channels
    ):
        return None
    side, channels = pipe.defaults.height // parts.autoencoder.factor, parts.autoencoder.config.latent_channels
    levels = path_to_noise(parts.schedule, steps)

    def bits(images: Tensor, prompts: Sequence[str], numbers: Sequence[int]) -> Tensor:
        with torch.no_grad():
            latents = parts.autoencoder.to_latents(images.to(pipe.device)).float()
            cond = parts.text_encoder(list(prompts))
        denoise = pipe.engine.plain().denoiser().bind(cond.to(pipe.device))
        shape = latents.shape[1:]
        signs = [normal(k, "probe", numbers, shape).sign().to(latents) for k in range(probes)]
        noise = normal(0, "likelihood", numbers, shape).to(latents)
        nats = negative_log_likelihood(denoise, levels, latents, noise, hutchinson(signs))
        return nats / math.log(2.0)

    return LatentLikelihood(channels * side * side, bits)
