#!/usr/bin/env bash
# Write constraints.txt: the newest releases of all that ".[dev,wandb]" needs, but torch, as pip installs them today.
# usage: bash scripts/make_constraints.sh [PYTHON], by default python3.11, the lowest; then run `pytest` and commit
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${1:-python3.11}" -m venv "$folder/venv"
LATENT_DIFFUSION_NATIVE=0 "$folder/venv/bin/pip" install -q "$PWD[dev,wandb]"
{
    echo "# The releases that the whole test suite was run with (wandb: a run by hand); docs/installs.md has the table of runs."
    echo "# torch is left out, with all that comes with it: which build fits is a matter of the machine."
    echo "# Made by \`bash scripts/make_constraints.sh\`; make it again the same way, run \`pytest\`, commit."
    "$folder/venv/bin/pip" freeze --exclude latent_diffusion \
        | grep -viE '^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+|setuptools)=='
} > "$folder/constraints.txt"
mv "$folder/constraints.txt" constraints.txt
