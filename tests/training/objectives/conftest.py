"""Runs on four small pictures."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from latent_diffusion.config import RunConfig

sys.path.insert(0, str(Path(__file__).parent))  # `real`, also for the processes tests start

COLOURS = ("red", "green", "blue", "orange", "purple", "black")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder of six coloured discs with captions; treat it as read-only."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for k, colour in enumerate(COLOURS):
        picture = Image.new("RGB", (32, 32), "white")
        ImageDraw.Draw(picture).ellipse((4, 4 + k, 20 + k, 28), fill=colour)
        picture.save(folder / f"{k}.png")
        texts = {"text": f"a {colour} disc", "text_alt": [f"disc, {colour}", f"{colour} circle"]}
        rows.append({"file_name": f"{k}.png", **texts, "split": "train" if k < 4 else "val"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert np.asarray(Image.open(folder / "0.png")).shape == (32, 32, 3)
    return folder


@pytest.fixture
def make_run(pictures, tmp_path) -> Callable[..., RunConfig]:
    """Return a function that makes a run on the discs: `make_run(objective={...}, data={...}, steps=...)`."""

    def make(objective: dict, data: dict | None = None, **values: object) -> RunConfig:
        section = {"path": str(pictures), "size": 32, "where": {"split": "train"}, **(data or {})}
        defaults = {"output": str(tmp_path / "run"), "steps": 3, "batch_size": 4, "threads": 1}
        return RunConfig.model_validate({**defaults, "objective": objective, "data": section, **values})

    return make
