"""TAESD: pictures by a tiny decoder that was distilled from the large one.

The path of the latents stays exact; what is read from a picture (image to image, inpainting) is read by the large
encoder, and pixels outside a mask are kept as ever. Reference: see `models.tiny_autoencoder`.
"""

from dataclasses import dataclass

from latent_diffusion.diffusion.approximation import Approximation
from latent_diffusion.errors import ConfigError
from latent_diffusion.models.tiny_autoencoder import TinyAutoencoder

__all__ = ["TAESD"]


@dataclass(frozen=True)
class TAESD(Approximation):
    """Decoding by a tiny autoencoder."""

    autoencoder: TinyAutoencoder  # for the same latents
    model: str = ""  # its folder, for the record of what made a picture

    def __post_init__(self) -> None:
        if not isinstance(self.autoencoder, TinyAutoencoder):
            raise ConfigError(f"taesd: a {type(self.autoencoder).__name__} is no tiny autoencoder")
