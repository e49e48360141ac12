"""How the weight of a token changes what the U-Net reads: the rules in use give different pictures.

    a1111     state * weight, then the whole chunk is scaled so that its mean is what it was
    no-norm   state * weight
    comfy     empty + weight * (state - empty), where `empty` is the state at that place for the empty prompt
    none      there is no syntax: brackets are text
    ignore    state: brackets and weights are read as syntax, and every weight counts 1

"a1111", "no-norm" and "ignore" are the A1111 web UI's emphasis "Original", "No norm" and "Ignore"
(github.com/AUTOMATIC1111/stable-diffusion-webui, modules/sd_emphasis.py), "comfy" is ComfyUI's rule. There the mean is
taken over a batch; here over each chunk alone, so that a prompt's picture does not depend on its neighbours.
"""

import torch
from torch import Tensor

__all__ = ["weigh"]

ROUNDING = 1e-4
"""A mean below this share of the mean size is rounding noise (a final norm without bias gives exactly that): there is
nothing to restore, and dividing by it would only make noise loud."""


def weigh(states: Tensor, weights: Tensor, emphasis: str, empty: Tensor | None) -> Tensor:
    """Return the text states of N chunks with the weights of their tokens.

    Args:
        states: (N, L, D) float32.
        weights: (N, L) float32 on any device; 1 = as it is.
        emphasis: one of `options.call.Emphasis`.
        empty: (1, L, D) states of the empty prompt; needed by "comfy".
    """
    if emphasis in ("none", "ignore") or bool((weights == 1).all()):
        return states
    factor = weights.to(states)[..., None]
    if emphasis == "comfy":
        assert empty is not None, "comfy's rule starts from the empty prompt"
        return torch.where(factor == 1, states, empty + factor * (states - empty))
    weighed = states * factor
    return weighed if emphasis == "no-norm" else weighed * _restoring(states, weighed)


def _restoring(states: Tensor, weighed: Tensor) -> Tensor:
    """Return the factor (N, 1, 1) that gives each chunk of `weighed` the mean of `states`; 1 where that is noise."""
    mean, new = (values.mean(dim=(1, 2), keepdim=True) for values in (states, weighed))
    sizes = [ROUNDING * values.abs().mean(dim=(1, 2), keepdim=True) for values in (states, weighed)]
    clear = (mean.abs() > sizes[0]) & (new.abs() > sizes[1])
    return torch.where(clear, mean / torch.where(clear, new, 1.0), 1.0)
