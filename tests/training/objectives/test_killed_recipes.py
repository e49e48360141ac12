"""Masks, holes, words, subjects and concepts: killed and resumed, a run ends bit for bit as without.

Two recipes are killed by default; `KILLS=10 pytest -m slow` on this file kills each of the seven ten times.
"""

import json
import os
import shutil

import numpy as np
import pytest
from kills import kill_at_random_steps
from PIL import Image

KILLS = int(os.environ.get("KILLS", "0"))
CONCEPT = {"prompt": "a red disc", "toward": "a blue disc", "away": "a red disc"}
RECIPES = {
    "masked": {"name": "lora", "adapter": {"rank": 2}, "masked": {"outside": 0.1, "prior": 0.5}},
    "slide": {"name": "concepts", "concepts": [{**CONCEPT, "anchor": "a red disc"}], "draw_steps": 3},
    "inpainting": {"name": "unet", "inpainting": {}},
    "inpainting adapter": {"name": "lora", "adapter": {"rank": 2}, "inpainting": {}},
    "words": {"name": "textual_inversion", "words": [{"token": "disc", "start": "sun", "vectors": 2}]},
    "subject": {"name": "lora", "adapter": {"rank": 2}, "preserve": {"replace": {"disc": "circle"}}},
    "erase": {"name": "concepts", "concepts": [{"prompt": "a red disc"}], "draw_steps": 3},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES if KILLS else ["masked", "slide"])
def test_killed_and_resumed_equals_uninterrupted(pictures, tiny_folder, tmp_path, name):
    folder = tmp_path / "pictures"
    shutil.copytree(pictures, folder)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    for k, row in enumerate(rows):
        mask = np.zeros((32, 32), np.uint8)
        mask[:, : 16 if k % 2 else 6] = 255
        Image.fromarray(mask).save(folder / f"{k}.mask.png")
        row["mask_file"] = f"{k}.mask.png"
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"path": str(folder), "size": 32, "captions": ["text"], "caption_dropout": 0.3, "where": {"split": "train"}}
    without = RECIPES[name]["name"] == "concepts"
    run = {
        "output": "unused", "steps": 16, "batch_size": 4, "threads": 1, "log_every": 1, "warmup": 5,
        "objective": {**RECIPES[name], "init": str(tiny_folder)}, "data": {"size": 32} if without else data,
        "ema": {"decay": 0.9}, "optimizer": {"learning_rate": 1e-3}, "checkpoint": {"every": 4, "keep": 1},
    }  # fmt: skip
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps(run))
    kill_at_random_steps(str(config), tmp_path, name, kills=KILLS or 1)
