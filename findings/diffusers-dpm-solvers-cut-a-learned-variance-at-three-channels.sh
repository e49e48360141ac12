#!/usr/bin/env bash
# diffusers 0.42.1 (with torch 2.13.0): DPM-Solver schedulers and a network that predicts its variance too.
#
# One would expect: with `variance_type="learned_range"` a network has twice the channels of the sample; the first half is
# the noise, as in DDPMScheduler, whatever the number of channels.
# What happens instead: `algorithm_type="dpmsolver++"` and "dpmsolver" keep the first 3 channels. A picture of 3 channels
# works. Latents of 4 channels end in an error about tensor sizes. Grey pictures of 1 channel get 2: what was kept was noise
# and variance (both of the network's channels), and the sample is broadcast to them without a message.
#
# Output seen on 2026-11-30 (Python 3.11, CPU):
#   torch 2.13.0+cpu, diffusers 0.42.1
#   DDPMScheduler: 1 -> 1, 3 -> 3, 4 -> 4
#   DPMSolverMultistepScheduler: 1 -> 2, 3 -> 3, 4 -> RuntimeError
#   DPMSolverSinglestepScheduler: 1 -> 2, 3 -> 3, 4 -> RuntimeError
#
# Why it matters: improved DDPM on latents (DiT and its like) or on grey pictures cannot be drawn by these schedulers as its
# config asks; drop the variance channels before `step`, and set `variance_type=None`.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
    torch==2.13.0 diffusers==0.42.1
cd "$folder"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error DIFFUSERS_VERBOSITY=error

"$folder/venv/bin/python" -W ignore - <<'PROGRAM'
import sys
from importlib.metadata import version

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler

print(", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers")))


def after_a_step(scheduler, channels):
    """Channels of the sample after one step, or the name of the error."""
    scheduler.set_timesteps(10)
    draw = torch.Generator().manual_seed(0)
    sample, output = (torch.randn(1, n, 8, 8, generator=draw) for n in (channels, 2 * channels))
    try:
        return scheduler.step(output, scheduler.timesteps[0], sample).prev_sample.shape[1]
    except RuntimeError as error:
        return type(error).__name__


seen = {}
for kind in (DDPMScheduler, DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler):
    name = kind.__name__
    seen[name] = {n: after_a_step(kind(variance_type="learned_range"), n) for n in (1, 3, 4)}
    print(f"{name}: " + ", ".join(f"{n} -> {got}" for n, got in seen[name].items()))

right = seen.pop("DDPMScheduler") == {1: 1, 3: 3, 4: 4}
cut = all(got == {1: 2, 3: 3, 4: "RuntimeError"} for got in seen.values())
sys.exit(0 if right and cut else "the behaviour has changed")
PROGRAM
