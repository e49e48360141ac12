"""A U-Net that also writes v, which chooses the variance, made of one that does not.

New weights are zero and their biases -1, so that at first every variance is the posterior's, "fixed_small".
"""

from dataclasses import replace

import torch
from torch import nn

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.folder.default_sampler import with_changes
from latent_diffusion.checkpoint.folder.scheduler_config import read_schedule
from latent_diffusion.errors import ConfigError

__all__ = ["LEARNED_RANGE", "widen_head"]

LEARNED_RANGE = {"_class_name": "DDPMScheduler", "variance_type": "learned_range"}
"""Fields of the scheduler of a model with a learned variance."""


@torch.no_grad()
def widen_head(parts: Components) -> Components:
    """Change the U-Net of `parts`, which writes C channels, so that it writes 2 C, and return the model it makes.

    Its default sampler is DDPM, the one that follows a learned variance.

    Raises:
        ConfigError: a noise law that DDPMScheduler has no name for.
    """
    config = with_changes(parts.scheduler_config, LEARNED_RANGE)
    if read_schedule(config) != (parts.schedule, parts.prediction):
        raise ConfigError(
            f"the noise law of {parts.name} is none of DDPMScheduler's, which follows a learned variance; train on "
            "from a model with another"
        )
    unet, old = parts.unet, parts.unet.conv_out
    channels = parts.autoencoder.config.latent_channels
    new = nn.Conv2d(old.in_channels, 2 * channels, old.kernel_size, padding=old.padding)  # type: ignore[arg-type]
    assert new.bias is not None and old.bias is not None, "the last convolution has a bias"
    new.weight.zero_()
    new.bias.fill_(-1.0)
    new.weight[:channels] = old.weight
    new.bias[:channels] = old.bias
    unet.conv_out = new
    unet.config = replace(unet.config, out_channels=2 * channels)
    return replace(parts, scheduler_config=config)
