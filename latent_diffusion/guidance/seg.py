"""Smoothed energy guidance: move away from the estimate with blurred queries in some self-attentions.

    x0 = x0 + scale * (x0(prompt) - x0(prompt, with queries blurred over the picture in `layers`))

Blurring the queries blurs the attention weights, which flattens the energy that attention descends.
Reference: Hong 2024, arXiv:2408.00760, section 4.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from latent_diffusion.checks import check_number
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.diffusion.guidance import LARGEST_SCALE, Guidance, GuidanceContext, Stage
from latent_diffusion.guidance.pag import away_from, self_attentions, with_kernels
from latent_diffusion.nn.attention import Attention, Kernel

__all__ = ["SEG"]

REACH = 3  # radius of the blur in sigmas


@dataclass(frozen=True)
class SEG(Guidance):
    """Smoothed energy guidance, one more network call a step; scale 0 or sigma 0 is off."""

    neutral: ClassVar[Mapping[str, Any]] = {"scale": 0.0}

    scale: float = 3.0
    sigma: float = math.inf  # of the Gaussian, in tokens of the layer; inf = all queries are their mean
    layers: str = "mid"  # parts of the names of the self-attentions, joined by "|"; "" = all

    def __post_init__(self) -> None:
        check_number("seg: scale", self.scale, LARGEST_SCALE)
        check_number("seg: sigma", self.sigma, math.inf)

    def stages(self, context: GuidanceContext) -> tuple[Stage, ...]:
        """Return the push away from the blurred prediction.

        Raises:
            ConfigError: no self-attention of the network is called so.
        """
        if not self.scale or not self.sigma:
            return ()
        network = context.denoiser.network
        found = self_attentions("seg", network, self.layers)
        assert isinstance(network, nn.Module), "self_attentions looked into it"
        return (away_from(context, replace(context.denoiser, network=Blurred(network, found, self.sigma)), self.scale),)


@dataclass(frozen=True)
class Blurred:
    """The network with blurred queries. Attention sees tokens only; the sizes of the maps follow from that of x."""

    network: Any  # a module that is a `Network`
    attentions: dict[str, Attention]
    sigma: float
    made: dict[tuple[int, int], nn.Module] = field(default_factory=dict)  # by height and width of x

    def project(self, cond: Conditioning) -> Any:
        """Return what the network makes of the condition: the blur is in self-attentions only."""
        return self.network.project(cond)

    def __call__(self, x: Tensor, t: Tensor, projected: Any) -> Tensor:
        """Return the output (B, C, h, w) at x (B, C, h, w)."""
        height, width = x.shape[-2:]
        if (height, width) not in self.made:
            self.made[height, width] = self._for(map_sizes(height, width))
        return self.made[height, width](x, t, projected)

    def _for(self, sizes: dict[int, tuple[int, int]]) -> nn.Module:
        def change(kernel: Kernel) -> Kernel:
            return lambda q, k, v: kernel(blurred(q, sizes[q.shape[-2]], self.sigma), k, v)

        return with_kernels(self.network, self.attentions, change)


def map_sizes(height: int, width: int) -> dict[int, tuple[int, int]]:
    """Return height and width of a U-Net's feature maps by their number of tokens; each level halves, rounding up."""
    sizes = {height * width: (height, width)}
    while (height, width) != (1, 1):
        height, width = (height + 1) // 2, (width + 1) // 2
        sizes[height * width] = height, width
    return sizes


def blurred(q: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """Return queries (B, N, H * W, d) blurred over the H x W map."""
    if math.isinf(sigma):
        return q.mean(dim=-2, keepdim=True).expand_as(q)
    rows, columns = (gaussian_matrix(side, sigma).to(q) for side in size)
    return torch.einsum("ih,jw,bnhwd->bnijd", rows, columns, q.unflatten(-2, size)).flatten(2, 3)


def gaussian_matrix(side: int, sigma: float) -> Tensor:
    """Return the blur of a line of `side` values as a matrix, float32; beyond its ends the line is mirrored."""
    radius = math.ceil(REACH * sigma)
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offsets.float() / sigma) ** 2)
    period = max(2 * side - 2, 1)
    place = (torch.arange(side)[:, None] + offsets) % period  # (side, 2 radius + 1)
    place = torch.minimum(place, (period - place) % period) if side > 1 else place * 0
    shares = (weights / weights.sum()).expand(side, -1).contiguous()
    return shares.new_zeros(side, side).scatter_add_(1, place, shares)
