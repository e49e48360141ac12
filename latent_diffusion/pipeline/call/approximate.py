"""Text forms of approximations: "deepcache:interval=3" for an object of `approximations/`, and back."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from latent_diffusion.diffusion.approximation import Approximation
from latent_diffusion.diffusion.denoiser import Network
from latent_diffusion.errors import ConfigError
from latent_diffusion.models.tiny_autoencoder import TinyAutoencoder
from latent_diffusion.pipeline.call.words import build, text_of, texts_of

__all__ = ["EXACT", "Approximate", "OpenTiny", "choose_approximations"]

PACKAGE = "latent_diffusion.approximations"

OpenTiny = Callable[[str], TinyAutoencoder]
"""Opens the folder of a tiny autoencoder for the model's latents."""


@dataclass(frozen=True)
class Approximate:
    """The approximations of a call."""

    parts: tuple[Approximation, ...] = ()

    @property
    def decoder(self) -> TinyAutoencoder | None:
        """The decoder in place of the model's autoencoder."""
        found = (part.decoder for part in self.parts)
        return next((decoder for decoder in found if isinstance(decoder, TinyAutoencoder)), None)

    @property
    def texts(self) -> tuple[str, ...] | None:
        """The text form, every number written out; None = nothing. Values without a text form are missing in it."""
        return tuple(text_of(PACKAGE, part) for part in self.parts) or None


EXACT = Approximate()


def choose_approximations(asked: object, network: Network, open_tiny: OpenTiny) -> Approximate:
    """Return the approximations of a call.

    Args:
        asked: None, a text or an `Approximation`, or several of either.
        network: the model's, which they must fit.
        open_tiny: for "taesd:model=...".

    Raises:
        ConfigError: what cannot be read, does not fit, or is named twice.
        CheckpointError: the tiny autoencoder's files are missing or damaged.
    """
    parts = tuple(part if isinstance(part, Approximation) else _read(part, open_tiny) for part in _each(asked))
    kinds = [type(part).__name__.lower() for part in parts]
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise ConfigError(f"approximation {kind!r} is named {kinds.count(kind)} times; name it once")
    for part in parts:
        part.check(network)
    return Approximate(parts) if parts else EXACT


def _each(asked: object) -> Iterator[Any]:
    several = asked if isinstance(asked, list | tuple) else (asked,)
    words = [part for part in several if not isinstance(part, Approximation)]
    texts_of("approximation", None if words == [None] else words, "an Approximation")
    yield from (part for part in several if part is not None)


def _read(text: str, open_tiny: OpenTiny) -> Approximation:
    return build(PACKAGE, text, lambda kind, values: kind.from_values(values, open_tiny))
