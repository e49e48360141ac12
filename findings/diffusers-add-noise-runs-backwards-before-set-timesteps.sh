#!/usr/bin/env bash
# diffusers 0.42.1 (with torch 2.13.0): `add_noise` of a multistep scheduler that was just made or loaded.
#
# One would expect: `scheduler.add_noise(latents, noise, t)` adds little noise at t = 10 and nearly nothing but noise at
# t = 990, whichever scheduler of the folder it is; training asks for it without `set_timesteps`.
# What happens instead: DPMSolverMultistep, DPMSolverSinglestep, UniPC and DEIS keep their times from 999 to 0 but their
# noise levels from low to high until `set_timesteps` is called, so the noise of 999 - t is added, without a word. After
# `set_timesteps(1000)` they are right. Twelve others asked (DDPM, DDIM, PNDM, Euler, ...) are right before it too.
#
# Output seen on 2026-11-29 (Python 3.11, CPU):
#   torch 2.13.0+cpu, diffusers 0.42.1
#   expected at t = 10 and 990: 0.0978, 0.9974 (Euler and its kind 0.0983, 13.843)
#   DPMSolverMultistep: just made 0.9974, 0.0932; after set_timesteps(1000) 0.0978, 0.9974
#   DPMSolverSinglestep: just made 0.9974, 0.0932; after set_timesteps(1000) 0.0978, 0.9974
#   UniPCMultistep: just made 0.9974, 0.0932; after set_timesteps(1000) 0.0978, 0.9974
#   DEISMultistep: just made 0.9974, 0.0932; after set_timesteps(1000) 0.0978, 0.9974
#   right when just made: 12 of 12 others
#
# Why it matters: a training script that noises with the scheduler of a model's folder, where that is DPM++, UniPC or
# DEIS, shows the U-Net the wrong noise at every time but the middle one, and nothing raises. Train with DDPMScheduler.
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

import diffusers
import torch

print(", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers")))
LAW = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
latents, noise, times = torch.zeros(2, 1, 1, 1), torch.ones(2, 1, 1, 1), torch.tensor([10, 990])
alpha_bar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
share = (1 - alpha_bar[times]).sqrt()  # amount of noise where signal and noise have unit power together
ratio = share / alpha_bar[times].sqrt()  # amount of noise where the signal is kept whole (Euler and its kind)
print(f"expected at t = 10 and 990: {share[0]:.4f}, {share[1]:.4f} (Euler and its kind {ratio[0]:.4f}, {ratio[1]:.3f})")


def added(name, steps):
    scheduler = getattr(diffusers, name + "Scheduler")(**LAW)
    if steps:
        scheduler.set_timesteps(steps)
    found = scheduler.add_noise(latents, noise, times).flatten()
    right = any(torch.allclose(found, law, rtol=1e-3) for law in (share, ratio))
    return found.tolist(), right


REVERSED = ["DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep"]
RIGHT = [
    "DDPM", "DDPMParallel", "DDIM", "DDIMParallel", "PNDM", "LCM", "TCD", "EulerDiscrete", "EulerAncestralDiscrete",
    "HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete",
]
expected = True
for name in REVERSED:
    (fresh, fresh_right), (after, after_right) = added(name, None), added(name, 1000)
    backwards = fresh[0] > 0.99 and fresh[1] < 0.1
    print(f"{name}: just made {fresh[0]:.4f}, {fresh[1]:.4f}; after set_timesteps(1000) {after[0]:.4f}, {after[1]:.4f}")
    expected = expected and backwards and not fresh_right and after_right
right = [name for name in RIGHT if added(name, None)[1]]
print(f"right when just made: {len(right)} of {len(RIGHT)} others")
sys.exit(0 if expected and right == RIGHT else "the behaviour has changed")
PROGRAM
