"""Classifier-free guidance.

    x0 = x0(negative) + scale * (x0(prompt) - x0(negative))

Reference: Ho & Salimans 2022, arXiv:2207.12598, eq. 6, where w = scale - 1. The weights sum to one and x is the same in
both rows, so combining x0 equals combining epsilon or v.

Strong guidance overexposes; `rescale` brings each image's network output back towards the spread it has without
guidance. Reference: Lin et al. 2023, arXiv:2305.08891, eq. 15 and 16.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from latent_diffusion.conditioning import Conditioning
from latent_diffusion.diffusion.denoiser import Denoiser
from latent_diffusion.diffusion.level import Denoise, Level

__all__ = ["CFG"]


@dataclass(frozen=True)
class CFG:
    """Classifier-free guidance with a negative prompt, in one batched call of the network."""

    scale: float = 7.5  # 1 = the prompt alone, at half the cost; larger follows the prompt more closely
    rescale: float = 0.0  # 0 = off, 1 = exactly the unguided spread; the paper uses 0.7

    def bind(self, denoiser: Denoiser, prompt: Conditioning, negative: Conditioning) -> Denoise:
        """Fix both conditions (B rows each) and return the guided `denoise(x, level) -> x0`."""
        if self.scale == 1.0:
            return denoiser.bind(prompt)
        both = denoiser.bind(Conditioning.cat([negative, prompt]))

        def denoise(x: Tensor, level: Level) -> Tensor:
            away, towards = both(torch.cat([x, x]), level).chunk(2)
            guided = away + self.scale * (towards - away)
            return self._rescaled(denoiser, guided, towards, x, level) if self.rescale else guided

        return denoise

    def _rescaled(self, denoiser: Denoiser, guided: Tensor, towards: Tensor, x: Tensor, level: Level) -> Tensor:
        """Shrink the network output that `guided` stands for; mixing outputs mixes their x0, the map is linear."""
        output, plain = (denoiser.output(x0, x, level) for x0 in (guided, towards))
        ratio = plain.std(dim=(1, 2, 3), keepdim=True) / output.std(dim=(1, 2, 3), keepdim=True)
        return denoiser.x0(output * (self.rescale * ratio + (1 - self.rescale)), x, level)
