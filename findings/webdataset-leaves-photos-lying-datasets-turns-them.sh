#!/usr/bin/env bash
# webdataset 1.0.2 and datasets 5.2.0 (with Pillow 13.0.0): a photo with an orientation, from one and the same shard.
#
# One would expect: a tar of pictures, read by webdataset's `decode("pil")` or by `load_dataset("webdataset", ...)`,
# gives the same pictures.
# What happens instead: datasets turns a picture as its Exif orientation asks and webdataset does not, so a photo of 40
# x 20 pixels with orientation 6 (a telephone held upright) is 20 x 40 from one and lies on its side, 40 x 20, from the
# other.
#
# Output seen on 2026-11-29 (Python 3.11):
#   webdataset 1.0.2, datasets 5.2.0, Pillow 13.0.0
#   plain: webdataset (40, 20), first row from 0 to 255; datasets (40, 20), first row from 0 to 255
#   turned: webdataset (40, 20), first row from 0 to 255; datasets (20, 40), first row from 0 to 0
#
# Why it matters: a model trained from webdataset learns people lying on their side from every upright telephone photo
# that was not rewritten before; sizes kept beside the pictures, and so the buckets of sizes, are swapped between the
# two readers.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
    numpy==2.4.6 Pillow==13.0.0 webdataset==1.0.2 datasets==5.2.0
cd "$folder"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error DIFFUSERS_VERBOSITY=error

"$folder/venv/bin/python" -W ignore - <<'PROGRAM'
import sys
import tarfile
from importlib.metadata import version

import datasets
import numpy as np
import webdataset
from PIL import Image

print(", ".join(f"{name} {version(name)}" for name in ("webdataset", "datasets", "Pillow")))
datasets.disable_progress_bars()
picture = Image.fromarray(np.repeat(np.linspace(0, 255, 40, dtype=np.uint8)[None, :, None], 20, 0).repeat(3, -1))
for key, orientation in (("plain", 1), ("turned", 6)):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(f"{key}.jpg", quality=95, exif=exif)
with tarfile.open("shard.tar", "w") as tar:
    for key in ("plain", "turned"):
        tar.add(f"{key}.jpg")

one = {row["__key__"]: row["jpg"] for row in webdataset.WebDataset("shard.tar", shardshuffle=False).decode("pil")}
rows = datasets.load_dataset("webdataset", data_files="shard.tar", split="train", cache_dir="cache")
two = {row["__key__"]: row["jpg"].convert("RGB") for row in rows}
for key in one:
    left = np.asarray(one[key])[0, [0, -1], 0].tolist(), np.asarray(two[key])[0, [0, -1], 0].tolist()
    print(f"{key}: webdataset {one[key].size}, first row from {left[0][0]} to {left[0][1]}; "
          f"datasets {two[key].size}, first row from {left[1][0]} to {left[1][1]}")
same = one["plain"].size == two["plain"].size == (40, 20)
apart = one["turned"].size == (40, 20) and two["turned"].size == (20, 40)
sys.exit(0 if same and apart else "the behaviour has changed")
PROGRAM
