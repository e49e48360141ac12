"""Pictures to latents."""

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

__all__ = ["VaeEncode"]


class VaeEncode(NetworkCase):
    """The encoder alone, to the mean of the posterior."""

    title = "VAE encode"
    parts = ("autoencoder",)

    def ours(self, machine: Machine, placed: Components) -> Ready:
        """Return the encoder as the pipeline calls it."""
        images = self._images().to(machine.device, machine.vae_dtype)

        @torch.no_grad()
        def call() -> Mapping[str, Tensor]:
            return {"output": placed.autoencoder.encode(images).mean}

        return Ready(call, machine.vae_dtype)

    def theirs(self, components: Components) -> Twin:
        """Return diffusers' encoder."""
        from diffusers import AutoencoderKL as Theirs

        with torch.device("meta"):
            vae: Any = Theirs.from_config(autoencoder_values(components.autoencoder.config))
        return Twin(_Encode(twin_of(vae, components.autoencoder)), (self._images(),))

    def flops(self) -> float:
        """Count one encoding."""
        model = self.model.described.autoencoder.to("meta", torch.float32)
        images = self._images().to("meta")
        return count_flops(lambda: AutoencoderKL.encode(model, images))

    def _images(self) -> Tensor:
        """Return random pictures in [-1, 1]."""
        channels = self.model.described.autoencoder.config.in_channels
        return drawn("images", self.batch, channels, self.size, self.size).tanh()


class _Encode(nn.Module):
    """Diffusers' encoder from a tensor to a tensor."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, images: Tensor) -> Tensor:
        return self.vae.encode(images, return_dict=False)[0].mean
