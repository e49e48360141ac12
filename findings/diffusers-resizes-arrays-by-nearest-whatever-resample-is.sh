#!/usr/bin/env bash
# diffusers 0.42.1 (with torch 2.13.0, Pillow 13.0.0): `VaeImageProcessor` given one picture in three forms.
#
# One would expect: `VaeImageProcessor(resample="lanczos")` (lanczos is its default) resizes a picture with that filter,
# and a PIL picture, a NumPy array and a tensor of the same pixels give the same result up to rounding.
# What happens instead: `resample` counts for PIL pictures only. Arrays and tensors go through torch's `interpolate`
# with its default, the nearest pixel, whatever `resample` is. Stripes of 2 light and 2 dark pixels, made 4 times
# smaller, are even grey from PIL (0 of -1 to 1) and pure white from the other two.
#
# Output seen on 2026-11-29 (Python 3.11, CPU):
#   torch 2.13.0+cpu, diffusers 0.42.1, Pillow 13.0.0
#   stripes: PIL lanczos, mean 0.004
#   stripes: NumPy lanczos, mean 1.000, off PIL's by 1.00 (root mean square); lanczos, bicubic and nearest give one result: True
#   stripes: tensor lanczos, mean 1.000, off PIL's by 1.00 (root mean square); lanczos, bicubic and nearest give one result: True
#   rings: PIL lanczos, mean 0.000
#   rings: NumPy lanczos, mean 0.001, off PIL's by 0.71 (root mean square); lanczos, bicubic and nearest give one result: True
#   rings: tensor lanczos, mean 0.001, off PIL's by 0.71 (root mean square); lanczos, bicubic and nearest give one result: True
#
# Why it matters: image to image and inpainting of a tensor that is not of the asked size (also one that is merely not a
# multiple of 8) begin with a picture full of jagged edges, where the same call with a PIL picture is smooth. Resize
# before.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
    torch==2.13.0 diffusers==0.42.1 Pillow==13.0.0
cd "$folder"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error DIFFUSERS_VERBOSITY=error

"$folder/venv/bin/python" -W ignore - <<'PROGRAM'
import sys
from importlib.metadata import version

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

print(", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "Pillow")))
x, y = np.meshgrid(np.arange(512), np.arange(512))
stripes = np.repeat(((x % 4 < 2) * 255)[..., None], 3, -1).astype(np.uint8)
rings = np.repeat((127.5 + 127.5 * np.cos((x**2 + y**2) / 300))[..., None], 3, -1).round().astype(np.uint8)


def resized(pixels, form, resample):
    unit = pixels.astype(np.float32) / 255
    tensor = torch.from_numpy(unit).permute(2, 0, 1)[None]
    picture = {"PIL": Image.fromarray(pixels), "NumPy": unit[None], "tensor": tensor}
    return VaeImageProcessor(resample=resample).preprocess(picture[form], height=128, width=128)


ok = True
for name, pixels in (("stripes", stripes), ("rings", rings)):
    pil = resized(pixels, "PIL", "lanczos")
    print(f"{name}: PIL lanczos, mean {pil.mean():.3f}")
    for form in ("NumPy", "tensor"):
        by = {resample: resized(pixels, form, resample) for resample in ("lanczos", "bicubic", "nearest")}
        same = all(torch.equal(value, by["lanczos"]) for value in by.values())
        apart = (by["lanczos"] - pil).square().mean().sqrt().item()
        print(
            f"{name}: {form} lanczos, mean {by['lanczos'].mean():.3f}, off PIL's by {apart:.2f} (root mean square); "
            f"lanczos, bicubic and nearest give one result: {same}"
        )
        ok = ok and same and apart > 0.2
sys.exit(0 if ok else "the behaviour has changed")
PROGRAM
