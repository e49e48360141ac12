"""A U-Net that reads a mask and the picture around it, made of one that reads noisy latents alone.

The weights of the new channels are zero, so that at first it draws what the other draws (the start of the published
inpainting models: huggingface.co/runwayml/stable-diffusion-inpainting, "Training").
"""

from dataclasses import replace

import torch
from torch import nn

from latent_diffusion.checkpoint.components import Components

__all__ = ["widen"]


@torch.no_grad()
def widen(parts: Components) -> None:
    """Change the U-Net of `parts`, which reads C channels, so that it reads 2 C + 1: latents, mask, masked picture."""
    unet, old = parts.unet, parts.unet.conv_in
    channels = parts.autoencoder.config.latent_channels
    new = nn.Conv2d(2 * channels + 1, old.out_channels, old.kernel_size, padding=old.padding)  # type: ignore[arg-type]
    new.weight.zero_()
    new.weight[:, :channels] = old.weight
    if new.bias is not None and old.bias is not None:
        new.bias.copy_(old.bias)
    unet.conv_in = new
    unet.config = replace(unet.config, in_channels=2 * channels + 1)
