"""Inpaint on the core alone: the estimate of x0 is replaced by the picture where the mask is 0.

python examples/inpaint.py
"""

import torch

from latent_diffusion.checkpoint.load import load_model
from latent_diffusion.diffusion.denoiser import Denoiser
from latent_diffusion.diffusion.known import keep_known
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.spacing import levels
from latent_diffusion.guidance.cfg import CFG
from latent_diffusion.samplers.ddim import DDIM


@torch.no_grad()
def inpaint(known: torch.Tensor, mask: torch.Tensor, prompt: str, steps: int = 10, seed: int = 0) -> torch.Tensor:
    """Return latents like `known` (1, C, h, w), drawn anew where `mask` (1, 1, h, w) is 1 and kept where it is 0."""
    model = load_model("emoji")
    denoiser = Denoiser(model.unet, model.schedule, model.prediction)
    guided = CFG(2.0).bind(denoiser, model.text_encoder([prompt]), model.text_encoder([""]))
    denoise, noise = keep_known(guided, known, mask), NoiseSource([seed])
    visited = levels(model.schedule, "trailing", steps)
    *_, last = DDIM()(denoise, noise.draw(known.shape[1:]), visited, noise)
    return last.x


if __name__ == "__main__":
    known, mask = torch.zeros(1, 4, 16, 16), torch.zeros(1, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1.0
    latents = inpaint(known, mask, "Red apple, flat style emoji")
    kept = torch.equal(latents[:, :, :4], known[:, :, :4])
    print(tuple(latents.shape), "outside the mask:", "kept" if kept else "changed")
