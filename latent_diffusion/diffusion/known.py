"""Keep what is known of a picture while the rest is drawn: inpainting as a change of the estimate of x0.

Where the picture is known its x0 is known, so the estimate is replaced by it:

    x0 = mask * x0(network) + (1 - mask) * known

Every sampler builds the next x from x and x0, and ends on x0 itself; so the known part follows its own noising path and
arrives unchanged. With DDIM this equals blending in the noised picture after every step (Lugmayr et al. 2022,
arXiv:2201.09865, eq. 8, without resampling), and with DDPM the known part is a draw of q(x_{t-1} | x_t, known).

With a strength for each place instead of a mask, a place is known until only its share of the steps is left: a place of
strength 0.5 is the noised picture for the first half of the steps and drawn freely for the second, as image to image
with that strength would do. Reference: Levin & Fried 2023, arXiv:2306.00950, algorithm 1 ("differential diffusion").
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from latent_diffusion.diffusion.level import Denoise, Level
from latent_diffusion.diffusion.variance import Estimate, Ranged, parted, ranged, with_range

__all__ = ["Keep", "keep_estimate", "keep_known", "kept", "release_known", "released"]

ROUNDING = 1e-6  # of a share of steps; 0.29 * 100 is a hair below 29

Keep: TypeAlias = Callable[[Tensor, Level], Tensor]
"""(x0 (B, C, h, w), level) -> x0 with what is known in its place; `Guidance.bind` takes it as its last stage."""


def kept(known: Tensor, mask: Tensor) -> Keep:
    """Return the function that replaces x0 by `known` where mask is 0.

    Args:
        known: latents of the picture, (B, C, h, w) or (1, C, h, w), scaled as the network's.
        mask: (B, 1, h, w) or (1, 1, h, w) float in [0, 1]; 1 = repaint, 0 = keep.
    """

    def keep(x0: Tensor, level: Level) -> Tensor:
        return torch.lerp(known.to(x0).expand_as(x0), x0, mask.to(x0).expand_as(x0))

    return keep


def released(known: Tensor, strength: Tensor, levels: Sequence[Level]) -> Keep:
    """Return the function that replaces x0 by `known` at each place until its share of the steps is left.

    Args:
        known: latents of the picture, (B, C, h, w) or (1, C, h, w), scaled as the network's.
        strength: (B, 1, h, w) or (1, 1, h, w) float in [0, 1]: share of the steps in which a place is drawn freely;
            0 = kept, 1 = repainted from the first step on.
        levels: the levels that are visited, noisiest first, the last being where sampling ends. Between two of them
            (samplers of second order look there) the first of the two counts.
    """
    rising = [level.log_snr for level in levels]
    steps = len(levels) - 1

    def keep(x0: Tensor, level: Level) -> Tensor:
        begun = max(bisect_right(rising, level.log_snr) - 1, 0)
        free = strength.to(x0.device) * steps >= steps - begun - ROUNDING
        return torch.where(free & (strength.to(x0.device) > 0), x0, known.to(x0))

    return keep


def keep_known(denoise: Denoise, known: Tensor, mask: Tensor) -> Denoise:
    """Return `denoise` with x0 replaced by `known` where mask is 0; arguments as for `kept`."""
    return _then(denoise, kept(known, mask))


def release_known(denoise: Denoise, known: Tensor, strength: Tensor, levels: Sequence[Level]) -> Denoise:
    """Return `denoise` with x0 replaced by `known` until a place's steps begin; arguments as for `released`."""
    return _then(denoise, released(known, strength, levels))


def keep_estimate(keep: Keep, estimate: Estimate, level: Level) -> Estimate:
    """Return x0 as `keep` has it, and v, if any, of -1 in known places: there the posterior's variance is right."""
    x0, v = parted(estimate)
    if v is None:
        return keep(x0, level)
    free = keep(torch.ones_like(v), level) - keep(torch.zeros_like(v), level)  # 1 where x0 is the network's
    return keep(x0, level), free * (v + 1.0) - 1.0


def _then(denoise: Denoise, keep: Keep) -> Denoise:
    estimate = with_range(denoise)
    return ranged(lambda x, level: keep_estimate(keep, estimate(x, level), level), learned=isinstance(denoise, Ranged))
