#!/usr/bin/env bash
# safetensors 0.8.0 (with NumPy 2.4.6): the bytes of equal files.
#
# One would expect: the same tensors with the same metadata, written twice, are the same file; without metadata, and
# with one entry, they are.
# What happens instead: the entries of the metadata are written in an order drawn anew at each save, also within one
# process. Two entries give 2 files, 20 entries another file nearly every time. The tensors themselves are sorted. The
# upstream tracker has it as issue 584 (open).
#
# Output seen on 2026-11-29 (Python 3.11; counts of the last two lines vary):
#   numpy 2.4.6, safetensors 0.8.0
#   0 entries of metadata: 1 different files in 40 saves
#   1 entries of metadata: 1 different files in 40 saves
#   2 entries of metadata: 2 different files in 40 saves
#   20 entries of metadata: 40 different files in 40 saves
#
# Why it matters: tools name checkpoints and LoRA files by the hash of the whole file, caches and mirrors go by it, and
# a repeated training run with equal weights looks like another result. Compare tensors, or write the header sorted.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
    numpy==2.4.6 safetensors==0.8.0
cd "$folder"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error DIFFUSERS_VERBOSITY=error

"$folder/venv/bin/python" -W ignore - <<'PROGRAM'
import hashlib
import sys
from importlib.metadata import version

import numpy as np
from safetensors.numpy import save

print(", ".join(f"{name} {version(name)}" for name in ("numpy", "safetensors")))
tensors = {"b": np.zeros(2, np.float32), "a": np.ones(3, np.float32)}


def files(metadata):
    return len({hashlib.sha256(save(tensors, metadata=metadata)).hexdigest() for _ in range(40)})


found = [
    files(None),
    files({"format": "pt"}),
    files({"format": "pt", "modelspec.architecture": "stable-diffusion-v1"}),
    files({f"ss_entry_{index}": str(index) for index in range(20)}),
]
for entries, count in zip((0, 1, 2, 20), found):
    print(f"{entries} entries of metadata: {count} different files in 40 saves")
sys.exit(0 if found[:2] == [1, 1] and found[2] == 2 and found[3] > 10 else "the behaviour has changed")
PROGRAM
