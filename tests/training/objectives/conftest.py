"""Runs on four small pictures."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from latent_diffusion.config import RunConfig

sys.path.insert(0, str(Path(__file__).parent))  # `real`, also for the processes tests start


@pytest.fixture
def make_run(pictures, tmp_path) -> Callable[..., RunConfig]:
    """Return a function that makes a run on the discs: `make_run(objective={...}, data={...}, steps=...)`."""

    def make(objective: dict, data: dict | None = None, **values: object) -> RunConfig:
        section = {"path": str(pictures), "size": 32, "where": {"split": "train"}, **(data or {})}
        defaults = {"output": str(tmp_path / "run"), "steps": 3, "batch_size": 4, "threads": 1}
        return RunConfig.model_validate({**defaults, "objective": objective, "data": section, **values})

    return make
