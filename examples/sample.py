"""Draw latents on the core alone: text states, a denoiser, guidance, noise levels, a sampler.

    python examples/sample.py

The five pieces are what every picture of this package is made of; the pipeline adds prompts, checks and records.
"""

import torch

from latent_diffusion.checkpoint.load import load_model
from latent_diffusion.diffusion.denoiser import Denoiser
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.spacing import levels
from latent_diffusion.guidance.cfg import CFG
from latent_diffusion.samplers.dpmpp_2m import DPMpp2M


@torch.no_grad()
def sample(prompt: str, negative: str = "", steps: int = 10, seed: int = 0) -> torch.Tensor:
    """Return latents (1, C, h, w) of the bundled model."""
    model = load_model("emoji")
    denoiser = Denoiser(model.unet, model.schedule, model.prediction)
    denoise = CFG(2.0).bind(denoiser, model.text_encoder([prompt]), model.text_encoder([negative]))
    sampler, noise = DPMpp2M(), NoiseSource([seed])
    visited = levels(model.schedule, "trailing", steps, intervals=sampler.intervals, fractional=sampler.fractional)
    size = model.unet.config.sample_size
    x = noise.draw((model.unet.config.in_channels, size, size))
    *_, last = sampler(denoise, x, visited, noise)
    return last.x


if __name__ == "__main__":
    latents = sample("Red apple, flat style emoji")
    print(tuple(latents.shape), f"mean {latents.mean():.3f}, standard deviation {latents.std():.3f}")
