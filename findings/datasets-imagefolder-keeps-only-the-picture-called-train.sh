#!/usr/bin/env bash
# datasets 5.2.0: `load_dataset("imagefolder", data_dir=...)` on a folder in which one file is called "train 12.png".
#
# One would expect: a folder of 21 pictures, each with its row in metadata.jsonl, is a data set of 21 pictures, whatever
# the pictures are called.
# What happens instead: if the word train, test, eval, dev or val stands anywhere in the name of a file or a folder
# between separators (space, dot, dash, underscore), the names are taken for the names of splits. Files that carry no
# such word are in no split and are left out, without a message: a photograph of a locomotive called "train 12.png" makes
# a data set of one picture, in a split called "train" as always. "crash test.png" makes a split "test" with one
# picture, and the folder "test drive" one with what is in it. "latest.png", without a separator, changes nothing.
# The metadata's rows of the pictures left out are dropped as well. With data_files={"train": "FOLDER/**"}, as the
# training scripts of diffusers ask, all pictures come.
#
# Output seen on 2026-11-29 (Python 3.11):
#   datasets 5.2.0
#   20 pictures:                                {'train': 20}
#   20 pictures and latest.png:                 {'train': 21}
#   20 pictures and train 12.png:               {'train': 1}
#   20 pictures and crash test.png:             {'test': 1}
#   20 pictures in cats, 1 in test drive:       {'test': 1}
#   20 pictures and train 12.png, data_files:   {'train': 21}
#
# Why it matters: the training that follows sees one picture instead of 21, and its log shows nothing unusual.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check datasets==5.2.0 pillow==12.0.0
cd "$folder"
export HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1

"$folder/venv/bin/python" -W ignore - <<'PROGRAM'
import json
import logging
import sys
from importlib.metadata import version
from pathlib import Path

from datasets import load_dataset
from PIL import Image

logging.disable(logging.WARNING)
print(f"datasets {version('datasets')}")
twenty = [f"{number:03}.png" for number in range(20)]


def splits(title, names, files=False):
    """Sizes of the splits of a folder with these pictures, each with its row of metadata."""
    root = Path(title.replace(" ", "-"))
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (len(name), 0, 0)).save(root / name)
    rows = [json.dumps({"file_name": name, "text": "a photograph"}) for name in names]
    (root / "metadata.jsonl").write_text("\n".join(rows))
    where = {"data_files": {"train": f"{root}/**"}} if files else {"data_dir": str(root)}
    found = {split: len(rows) for split, rows in load_dataset("imagefolder", **where, cache_dir="cache").items()}
    print(f"{title + ':':43} {found}")
    return found


seen = [
    splits("20 pictures", twenty),
    splits("20 pictures and latest.png", [*twenty, "latest.png"]),
    splits("20 pictures and train 12.png", [*twenty, "train 12.png"]),
    splits("20 pictures and crash test.png", [*twenty, "crash test.png"]),
    splits("20 pictures in cats, 1 in test drive", [f"cats/{name}" for name in twenty] + ["test drive/1.png"]),
    splits("20 pictures and train 12.png, data_files", [*twenty, "train 12.png"], files=True),
]
expected = [{"train": 20}, {"train": 21}, {"train": 1}, {"test": 1}, {"test": 1}, {"train": 21}]
sys.exit(0 if seen == expected else "the behaviour has changed")
PROGRAM
