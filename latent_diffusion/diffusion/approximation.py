"""A network replaced, for one call, by one that costs less and answers nearly the same.

An approximation decides pixels, so it is on only where it is named, and a picture's record names it. Whatever it keeps
from one step for the next belongs to one bound denoiser: calls do not share it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from latent_diffusion.conditioning import Conditioning
from latent_diffusion.diffusion.denoiser import Denoiser, Network
from latent_diffusion.diffusion.level import Denoise, Level
from latent_diffusion.diffusion.variance import Estimate, Ranged, ranged, with_range

__all__ = ["Approximated", "Approximation", "Enter", "Scope", "approximated"]

Enter = Callable[[Level], None]
"""Called with the level of each call of the network, before it."""


@dataclass(frozen=True)
class Scope:
    """The facts of a call that are known before its first step."""

    levels: Sequence[Level]  # those the sampler will visit, noisiest first, the one to end in last
    size: tuple[int, int]  # height and width of the latents
    device: torch.device  # where the network computes


class Approximation:
    """A way to compute less; implementations are frozen dataclasses without state."""

    neutral: ClassVar[Mapping[str, Any]]  # arguments that leave the latents exact
    place: ClassVar[int] = 0  # several are made in this order, whatever order they are named in

    @classmethod
    def from_values(cls, values: Mapping[str, Any], open_tiny: Callable[[str], Any]) -> "Approximation":
        """Return it from the values of a text such as "deepcache:interval=3".

        `open_tiny` opens the folder of a tiny autoencoder for the model's latents.

        Raises:
            ConfigError: a value that cannot be.
        """
        return cls(**values)

    @property
    def decoder(self) -> nn.Module | None:
        """The decoder in place of the model's autoencoder; None = the model's own."""
        return None

    def check(self, network: Network) -> None:
        """Refuse a network that it cannot change.

        Raises:
            ConfigError: saying why.
        """
        return None

    def change(self, network: Network, scope: Scope) -> tuple[Network, Enter | None]:
        """Return a network for one call, and what is called with each level.

        Where the parameters make it exact, that is `network` itself, and None. `network` stays as it is.
        """
        return network, None


@dataclass(frozen=True)
class Approximated(Denoiser):
    """A denoiser whose network is changed anew for every condition it is bound to."""

    approximations: tuple[Approximation, ...] = ()
    scope: Scope | None = None  # given wherever there are approximations

    def bind(self, cond: Conditioning) -> Denoise:
        """Fix the condition (B rows) and return `denoise(x, level) -> x0` for batches of B."""
        assert self.scope is not None, "approximations need the scope of the call"
        network, entered = self.network, []
        for approximation in self.approximations:
            network, enter = approximation.change(network, self.scope)
            entered += [] if enter is None else [enter]
        own = {field.name: getattr(self, field.name) for field in fields(Denoiser)}
        exact = Denoiser(**{**own, "network": network}).bind(cond)

        def entering(x: Tensor, level: Level) -> Estimate:
            for enter in entered:
                enter(level)
            return with_range(exact)(x, level)

        return ranged(entering, learned=isinstance(exact, Ranged))


def approximated(denoiser: Denoiser, approximations: Sequence[Approximation], scope: Scope) -> Denoiser:
    """Return the denoiser with these approximations; itself where there are none.

    Guidances that change the network (pag) do so before, and are approximated alike.
    """
    if not approximations:
        return denoiser
    ordered = tuple(sorted(approximations, key=lambda a: a.place))
    own = {field.name: getattr(denoiser, field.name) for field in fields(Denoiser)}
    return Approximated(**own, approximations=ordered, scope=scope)
