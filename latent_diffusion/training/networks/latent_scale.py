"""Give latents zero mean and unit variance in every channel, without changing what the autoencoder does.

The statistics of z go into the two 1x1 convolutions around it: `quant_conv` then yields (z - mean) / std and
`post_quant_conv` takes that back. Both steps are exact; a scaling factor alone could not make the channels alike.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from latent_diffusion.errors import ConfigError
from latent_diffusion.models.autoencoder import AutoencoderKL

__all__ = ["fold_latent_scale", "latent_statistics"]


@torch.no_grad()
def latent_statistics(model: AutoencoderKL, images: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of z ~ q(z | image), float64 (C,) each, over batches of images.

    The variance of the drawn z is that of the posterior means plus the mean posterior variance.
    """
    totals: list[Tensor] = []
    count = 0
    for batch in images:
        posterior = model.encode(batch)
        mean, variance = posterior.mean.double(), posterior.logvar.double().exp()
        sums = torch.stack([mean.sum((0, 2, 3)), (mean.square() + variance).sum((0, 2, 3))])
        totals.append(sums)
        count += mean.numel() // mean.shape[1]
    first, second = torch.stack(totals).sum(0) / count
    return first, (second - first.square()).clamp(min=1e-12).sqrt()


@torch.no_grad()
def fold_latent_scale(model: AutoencoderKL, mean: Tensor, std: Tensor) -> AutoencoderKL:
    """Return a copy of `model` whose latents are (z - mean) / std, with a scaling factor of 1.

    Args:
        model: left as it is; needs both 1x1 convolutions.
        mean: (C,) of z.
        std: (C,) of z, positive.

    Raises:
        ConfigError: the autoencoder has no quant_conv or no post_quant_conv to take the statistics up.
    """
    before, after = model.quant_conv, model.post_quant_conv
    if not isinstance(before, nn.Conv2d) or not isinstance(after, nn.Conv2d):
        raise ConfigError("the latent scale is kept in quant_conv and post_quant_conv: set both to true in the model")
    folded = AutoencoderKL(replace(model.config, scaling_factor=1.0, shift_factor=None))
    folded.load_state_dict(model.state_dict())
    folded = folded.to(before.weight)
    mean, std = mean.to(before.weight.device).double(), std.to(before.weight.device).double()
    gain = torch.cat([1 / std, torch.ones_like(std)])  # mean channels shrink; logvar channels only shift
    shift = torch.cat([-mean / std, -2 * std.log()])
    _set(folded.quant_conv, before.weight.double() * gain.view(-1, 1, 1, 1), _bias(before) * gain + shift)
    weight = after.weight.double()
    _set(folded.post_quant_conv, weight * std.view(1, -1, 1, 1), _bias(after) + weight[:, :, 0, 0] @ mean)
    return folded.train(model.training)


def _bias(layer: nn.Conv2d) -> Tensor:
    return layer.weight.new_zeros(layer.out_channels).double() if layer.bias is None else layer.bias.double()


def _set(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    assert isinstance(layer, nn.Conv2d) and layer.bias is not None, "AutoencoderKL's 1x1 convolutions have a bias"
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
