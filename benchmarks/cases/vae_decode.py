"""Latents to pictures."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.case import NetworkCase, twin_of
from benchmarks.flops import count_flops
from benchmarks.peers import Twin
from benchmarks.plan import Ready, drawn
from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.folder.network_config import autoencoder_values
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.pipeline.engine.machine import Machine

__all__ = ["VaeDecode"]


class VaeDecode(NetworkCase):
    """The decoder alone."""

    title = "VAE decode"
    parts = ("autoencoder",)

    def ours(self, machine: Machine, placed: Components) -> Ready:
        """Return the decoder as the pipeline calls it."""
        z = self._latents().to(machine.device, machine.vae_dtype)

        @torch.no_grad()
        def call() -> Mapping[str, Tensor]:
            return {"output": placed.autoencoder.decode(z)}

        return Ready(call, machine.vae_dtype)

    def theirs(self, components: Components) -> Twin:
        """Return diffusers' decoder."""
        from diffusers import AutoencoderKL as Theirs

        with torch.device("meta"):
            vae: Any = Theirs.from_config(autoencoder_values(components.autoencoder.config))
        return Twin(_Decode(twin_of(vae, components.autoencoder)), (self._latents(),))

    def flops(self) -> float:
        """Count one decoding."""
        model = self.model.described.autoencoder.to("meta", torch.float32)
        z = self._latents().to("meta")
        return count_flops(lambda: AutoencoderKL.decode(model, z))

    def _latents(self) -> Tensor:
        coder = self.model.described.autoencoder
        side = self.size // coder.factor
        return drawn("z", self.batch, coder.config.latent_channels, side, side)


class _Decode(nn.Module):
    """Diffusers' decoder from a tensor to a tensor."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, z: Tensor) -> Tensor:
        return self.vae.decode(z, return_dict=False)[0]
