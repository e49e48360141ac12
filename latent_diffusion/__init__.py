"""Latent text-to-image diffusion: train every part, fine-tune, generate and inpaint.

    from latent_diffusion import LatentDiffusionPipeline

    pipe = LatentDiffusionPipeline.from_pretrained("emoji")
    pipe("a 3d render of a red apple", seed=1).images[0].save("apple.png")

Importing the package loads nothing heavy; torch arrives with the first name that needs it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from latent_diffusion.version import VERSION as __version__

if TYPE_CHECKING:
    from latent_diffusion.pipeline.pipeline import LatentDiffusionPipeline as LatentDiffusionPipeline

__all__ = ["LatentDiffusionPipeline", "__version__"]

_HOMES = {"LatentDiffusionPipeline": "latent_diffusion.pipeline.pipeline"}


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
