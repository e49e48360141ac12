"""A CLIP of noisy latents in its folder."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latent_diffusion.checkpoint.folder.latent_tower_folder import StoredTower, load_tower, tower_sizes
from latent_diffusion.models.latent_clip import LatentCLIP, LatentCLIPConfig

__all__ = ["load_latent_clip"]


def load_latent_clip(folder: str | os.PathLike[str]) -> StoredTower[LatentCLIP]:
    """Read a CLIP of noisy latents, float32 on the CPU, evaluation mode, without gradients of its weights.

    Raises:
        CheckpointError: a file is missing, damaged or does not fit; the message names it.
    """
    return load_tower(folder, LatentCLIP, _config)


def _config(file: Path, values: Mapping[str, Any]) -> LatentCLIPConfig:
    return LatentCLIPConfig(**tower_sizes(file, values, "text_width", "embed_dim"))
