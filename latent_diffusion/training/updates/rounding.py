"""Trained weights in bfloat16, rounded at random so that small updates are not lost.

    R(x) = the next bfloat16 number away from zero with probability p, else the one towards it
    p = the share of the way between them, so E R(x) = x

To the nearest, an update below 1/512 of a weight would change nothing. The random bits are keyed with (seed, the
weight's name, update), so a run that continues, and every process, rounds alike.
Reference: Gupta et al. 2015, arXiv:1502.02551, section 3; Zamirai et al. 2020, arXiv:2010.06192, section 4.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from latent_diffusion.config import RunConfig
from latent_diffusion.errors import ConfigError
from latent_diffusion.models.unet import UNet
from latent_diffusion.randomness import generator
from latent_diffusion.training.fsdp import is_asked

__all__ = ["check_bfloat16_weights", "round_trained", "rounded", "rounding_generator"]

OPTIMIZERS = ("adamw", "adamw8bit", "adafactor", "muon")
"""Optimizers whose updates of one weight do not read another."""


def rounded(x: Tensor, draw: torch.Generator) -> Tensor:
    """Return `x` (float32) in bfloat16, rounded at random without bias; the generator is on its device.

    The low 16 bits of a float32 number are the share of the way to the next bfloat16 number away from zero: a uniform
    number of 16 bits added to them carries with just that probability.
    """
    bits = x.contiguous().view(torch.int32)
    bits = bits + torch.randint(0, 2**16, bits.shape, generator=draw, dtype=torch.int32, device=x.device)
    carried = bits.bitwise_and_(-(2**16)).view(torch.float32).to(torch.bfloat16)
    return torch.where(x.isfinite(), carried, x.to(torch.bfloat16))


def rounding_generator(seed: int, name: str, update: int, device: torch.device) -> torch.Generator:
    """Return what rounds a weight in an update."""
    key = int(generator(seed, f"rounding {name}", update).integers(2**63))
    return torch.Generator(device).manual_seed(key)


def round_trained(unet: UNet) -> None:
    """Put the trained weights of linear layers and convolutions into bfloat16, in place, to the nearest.

    The first and the last convolution, norms and biases are few and stay in float32.
    """
    for layer in _layers(unet):
        layer.weight.data = layer.weight.data.to(torch.bfloat16)


def _layers(unet: UNet) -> Iterator[nn.Linear | nn.Conv2d]:
    ends = unet.conv_in, unet.conv_out
    for layer in unet.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and layer not in ends and layer.weight.requires_grad:
            yield layer


def check_bfloat16_weights(run: RunConfig) -> None:
    """Refuse settings beside which trained weights cannot lie in bfloat16.

    Raises:
        ConfigError: naming the setting and the reason.
    """
    optimizer = run.optimizer.get("name", "adamw")
    refused = {
        f"precision {run.precision}: it computes with weights of that format; set precision=bfloat16": (
            run.precision != "bfloat16"
        ),
        "ema: in bfloat16 an average does not move, and in float32 it takes twice the weights; leave ema out": (
            run.ema is not None
        ),
        f"optimizer {optimizer}: it keeps or reads other weights than the one that is rounded; use "
        f"{', '.join(OPTIMIZERS)}": optimizer not in OPTIMIZERS,
        "FSDP: random bits are drawn for whole tensors; launch without it": is_asked(),
    }
    for reason, holds in refused.items():
        if holds:
            raise ConfigError(f"memory.weights: bfloat16 does not go with {reason}")
