"""Make the first version of the bundled model of trained parts: float16 weights, the CLIP for scores, the record.

    python scripts/pack_bundled.py runs/emoji/unet_broad/model runs/emoji/clip/model assets/emoji-first

The readme of the target folder is kept. Refuses a model over 40 MB. A later version is packed by `pack_changes.py`, as
changes of this one, which must then be packed again.
"""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from latent_diffusion.checkpoint.files.safetensors_file import read_tensors, write_tensors
from latent_diffusion.checkpoint.folder.diffusers_folder import load_folder, save_folder
from latent_diffusion.families import emoji

LARGEST = 40_000_000  # bytes


def compact(file: Path) -> None:
    """Write a JSON file without the blanks; the vocabulary is a fifth smaller so."""
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values, ensure_ascii=False, separators=(",", ":")))


def in_repository(value: Any) -> Any:
    """Return a configuration with every absolute path under `runs/` as the repository's: wherever it was trained."""
    if isinstance(value, dict):
        return {name: in_repository(inner) for name, inner in value.items()}
    if isinstance(value, str) and value.startswith("/"):
        return f"runs/emoji/{value.rpartition('/runs/')[2]}"
    return value


def main(model: Path, clip: Path, target: Path) -> None:
    # the family's own sampler, steps and guidance, chosen after training
    save_folder(replace(load_folder(model), scheduler_config=emoji.SCHEDULER), target, torch.float16)
    (target / "clip").mkdir(exist_ok=True)
    for file in (clip / "clip").iterdir():
        if file.suffix == ".safetensors":
            tensors = {name: t.half() if t.is_floating_point() else t for name, t in read_tensors(file).items()}
            write_tensors(target / "clip" / file.name, tensors, {"format": "pt"})
        else:
            shutil.copy(file, target / "clip" / file.name)
    record = json.loads((model / "training.json").read_text())
    record["config"] = in_repository(record["config"])
    (target / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    (target / "tokenizer" / "tokenizer.json").unlink()  # the same again as vocab.json and merges.txt
    compact(target / "tokenizer" / "vocab.json")
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    print(f"{target}: {size / 1e6:.2f} MB")
    if size > LARGEST:
        sys.exit(f"error: the bundled model is {size} bytes, more than {LARGEST}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
