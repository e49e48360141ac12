"""Let the tests of this folder, and the processes they start, import `toy` and `processes`."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def models_read() -> dict[str, Any]:
    """The models that `models_read_once` has read, by folder."""
    return {}


@pytest.fixture
def models_read_once(models_read, monkeypatch):
    """Read the files of a model once a session; every run has a copy of its own."""
    import torch

    from latent_diffusion.checkpoint.load import load_model
    from latent_diffusion.training.networks import parts

    def load(place: str, dtype: Any = None, **options: Any) -> Any:
        if dtype is not torch.float32 or options:
            return load_model(place, dtype, **options)
        if place not in models_read:
            models_read[place] = load_model(place, dtype)
        model = models_read[place]
        shared = {id(tower.tokenizer): tower.tokenizer for tower in model.text_encoder.towers}  # large and read only
        return copy.deepcopy(model, shared)

    monkeypatch.setattr(parts, "load_model", load)
