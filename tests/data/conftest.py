"""Small picture folders, whole and broken."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def _encoded(size: tuple[int, int] = (32, 32), form: str = "PNG", seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


@pytest.fixture
def encoded() -> Callable[..., bytes]:
    """Return a function that makes the file of a random picture: `encoded(size, form, seed)`."""
    return _encoded


@pytest.fixture
def make_folder(tmp_path) -> Callable[..., Path]:
    """Return a function that writes a folder of `count` pictures and its metadata.jsonl."""

    def make(count: int = 5, name: str = "set", **extra: object) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        rows = []
        for k in range(count):
            (folder / f"{k}.png").write_bytes(_encoded(seed=k))
            rows.append({"file_name": f"{k}.png", "text": f"picture {k}", "split": "train" if k else "test", **extra})
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    return make
