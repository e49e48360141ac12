"""A classifier of noisy latents in its folder; config.json also has its classes."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latent_diffusion.checkpoint.folder.latent_tower_folder import LARGEST, StoredTower, load_tower, tower_sizes
from latent_diffusion.errors import CheckpointError
from latent_diffusion.models.latent_classifier import LatentClassifier, LatentClassifierConfig

__all__ = ["load_classifier"]


def load_classifier(folder: str | os.PathLike[str]) -> StoredTower[LatentClassifier]:
    """Read a classifier, float32 on the CPU, evaluation mode, without gradients of its weights.

    Raises:
        CheckpointError: a file is missing, damaged or does not fit; the message names it.
    """
    return load_tower(folder, LatentClassifier, _config)


def _config(file: Path, values: Mapping[str, Any]) -> LatentClassifierConfig:
    known = values.get("fields")
    if not isinstance(known, dict) or not all(
        isinstance(names, list) and len(names) <= LARGEST and all(isinstance(name, str) for name in names)
        for names in known.values()
    ):
        raise CheckpointError(f"{file}: fields is {known!r:.50}, lists of classes by name were expected")
    classes = {name: tuple(labels) for name, labels in known.items()}
    return LatentClassifierConfig(fields=classes, **tower_sizes(file, values))
