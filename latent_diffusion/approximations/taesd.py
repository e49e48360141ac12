"""TAESD: pictures by a tiny decoder that was distilled from the large one.

The path of the latents stays exact; what is read from a picture (image to image, inpainting) is read by the large
encoder, and pixels outside a mask are kept as ever. Reference: see `models.tiny_autoencoder`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from latent_diffusion.diffusion.approximation import Approximation
from latent_diffusion.errors import ConfigError
from latent_diffusion.models.tiny_autoencoder import TinyAutoencoder

__all__ = ["TAESD"]


@dataclass(frozen=True)
class TAESD(Approximation):
    """Decoding by a tiny autoencoder."""

    neutral: ClassVar[Mapping[str, Any]] = {}

    autoencoder: TinyAutoencoder  # for the same latents
    model: str = ""  # its folder, for the record of what made a picture

    @classmethod
    def from_values(cls, values: Mapping[str, Any], open_tiny: Callable[[str], Any]) -> "TAESD":
        """Open the tiny autoencoder whose folder `model` names."""
        if not values.get("model"):
            raise ConfigError("approximation 'taesd' needs model=FOLDER, that of a tiny autoencoder")
        return cls(open_tiny(values["model"]), values["model"])

    @property
    def decoder(self) -> TinyAutoencoder:
        """The tiny autoencoder."""
        return self.autoencoder

    def __post_init__(self) -> None:
        if not isinstance(self.autoencoder, TinyAutoencoder):
            raise ConfigError(f"taesd: a {type(self.autoencoder).__name__} is no tiny autoencoder")
