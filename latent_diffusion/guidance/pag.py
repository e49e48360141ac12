"""Perturbed-attention guidance: move away from the estimate with the identity as attention map in some layers.

    x0 = x0 + scale * (x0(prompt) - x0(prompt, with softmax(q k^T) replaced by the identity in `layers`))

It needs no negative prompt, so it also helps where CFG cannot, and adds to CFG where it can.
Reference: Ahn et al. 2024, arXiv:2403.17377, section 4.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from latent_diffusion.checks import check_number
from latent_diffusion.diffusion.denoiser import Denoiser
from latent_diffusion.diffusion.guidance import LARGEST_SCALE, Guidance, GuidanceContext, Stage, StageOrder, StepState
from latent_diffusion.errors import ConfigError
from latent_diffusion.nn.attention import Attention, Kernel
from latent_diffusion.nn.shared_copy import shared_copy
from latent_diffusion.nn.transformer import TransformerBlock

__all__ = ["PAG", "away_from", "self_attentions", "with_kernels"]


@dataclass(frozen=True)
class PAG(Guidance):
    """Perturbed-attention guidance, one more network call a step; scale 0 is off."""

    neutral: ClassVar[Mapping[str, Any]] = {"scale": 0.0}

    scale: float = 3.0
    layers: str = "mid"  # parts of the names of the self-attentions, joined by "|"; "" = all

    def __post_init__(self) -> None:
        check_number("pag: scale", self.scale, LARGEST_SCALE)

    def stages(self, context: GuidanceContext) -> tuple[Stage, ...]:
        """Return the push away from the perturbed prediction.

        Raises:
            ConfigError: no self-attention of the network is called so.
        """
        if not self.scale:
            return ()
        found = self_attentions("pag", context.denoiser.network, self.layers)
        assert isinstance(context.denoiser.network, nn.Module), "self_attentions looked into it"
        network = with_kernels(context.denoiser.network, found, lambda kernel: look_nowhere)
        return (away_from(context, replace(context.denoiser, network=network), self.scale),)


def look_nowhere(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend with the identity as attention map: every token keeps its own value."""
    return v


def away_from(context: GuidanceContext, perturbed: Denoiser, scale: float) -> Stage:
    """Return the stage that adds scale * (x0(prompt) - x0(prompt by `perturbed`))."""
    worse = context.seen_by(perturbed)

    def apply(now: StepState) -> Tensor:
        return now.guided + scale * (now.plain - now[worse])

    return Stage(StageOrder.PUSH, apply, needs=(worse,))


def self_attentions(who: str, network: object, layers: str) -> dict[str, Attention]:
    """Return the network's self-attentions in whose dotted name one of the parts in `layers` occurs.

    Plain parts and no regular expressions: some of those take ages, and `layers` may come from a picture's record.

    Raises:
        ConfigError: no U-Net, or none found.
    """
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{who} needs a U-Net of this package, not a {type(network).__name__}")
    blocks = ((name, block) for name, block in network.named_modules() if isinstance(block, TransformerBlock))
    every = {f"{name}.attn1": block.attn1 for name, block in blocks}
    parts = layers.split("|")
    found = {name: attention for name, attention in every.items() if any(part in name for part in parts)}
    if not found:
        raise ConfigError(
            f"{who}: layers {layers!r:.60} matches none of the self-attentions {', '.join(every) or '(none)'}"
        )
    return found


def with_kernels(network: nn.Module, attentions: dict[str, Attention], change: Callable[[Kernel], Kernel]) -> nn.Module:
    """Return the network with the kernel of the named attentions changed; weights are shared, the original stays."""
    twin = shared_copy(network)
    for name, attention in attentions.items():
        other = twin.get_submodule(name)
        assert isinstance(other, Attention), "a shared copy has the same modules under the same names"
        other.kernel = change(attention.kernel)
    return twin
