"""A tiny CLIP run in a process of its own, on a folder of pictures."""

import os
from pathlib import Path

import numpy as np
from PIL import Image


def make_pictures(folder: Path, count: int = 8) -> Path:
    """Write `count` pictures of one colour each with captions of unlike lengths; return the folder."""
    import json

    folder.mkdir()
    rows = []
    draw = np.random.default_rng(0)
    for k in range(count):
        pixels = np.full((16, 16, 3), draw.integers(0, 256, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
        rows.append({"file_name": f"{k}.png", "text": f"picture number {k}", "text_alt": [f"{k} " * (k + 1)]})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def config(output: Path | str, pictures: Path | str) -> str:
    """Return the text of a run."""
    return f"""
output: {output}
objective:
  name: clip
  embed_dim: 8
  patch_size: 8
  vocab_size: 530
  text: {{width: 16, layers: 1, heads: 2, mlp_ratio: 2}}
  vision: {{width: 16, layers: 1, heads: 2, mlp_ratio: 2}}
data: {{path: {pictures}, size: 16, captions: [text, text_alt]}}
steps: 30
batch_size: 8
optimizer: {{learning_rate: 1e-3, weight_decay: 0.1}}
ema: {{decay: 0.9}}
log_every: 1
threads: 1
"""


def run(output: Path | str, *overrides: str) -> int:
    """Train in this process."""
    from latent_diffusion.train import main

    file = Path(output).parent / f"{Path(output).name}-{os.environ.get('RANK', '0')}.yaml"
    file.write_text(config(output, Path(output).parent / "pictures"))
    return main([str(file), *overrides])
