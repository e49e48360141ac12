#!/usr/bin/env bash
# diffusers 0.42.1 (with torch 2.13.0): `add_noise` and `get_velocity` of bfloat16 latents.
#
# One would expect: bfloat16 latents are noised with sqrt(alpha_bar) and sqrt(1 - alpha_bar), each rounded to bfloat16:
# off by 0.4 % at most.
# What happens instead: alpha_bar itself is rounded to the type of the latents before 1 - alpha_bar is taken. Below 1
# bfloat16 has steps of 1/256, so 0.99915 becomes 1: at t = 0 and 1 no noise at all is added, at 2 to 4 the noise is
# 0.0625 in place of 0.0506 to 0.0665, and the 1000 levels are 192. float16 is off by up to 7 % and never 0.
#
# Output seen on 2026-11-29 (Python 3.11, CPU; Stable Diffusion's noise schedule):
#   torch 2.13.0+cpu, diffusers 0.42.1
#   float32: t = 0 to 5 0.0292, 0.0413, 0.0506, 0.0585, 0.0655, 0.0718; no noise at 0 times, 1000 levels, off by up to 0.0%
#   float16: t = 0 to 5 0.0312, 0.0383, 0.0494, 0.0585, 0.0663, 0.0733; no noise at 0 times, 762 levels, off by up to 7.3%
#   bfloat16: t = 0 to 5 0.0000, 0.0000, 0.0625, 0.0625, 0.0625, 0.0625; no noise at 2 times, 192 levels, off by up to 100.0%
#   exact: 0.0292, 0.0413, 0.0506, 0.0585, 0.0655, 0.0718
#   get_velocity of unit latents without noise, bfloat16, t = 0 and 1: [0.0, 0.0]
#
# Why it matters: in a training loop with bfloat16 latents the target still is the noise, which at t = 0 and 1 is not in
# the input at all, and nearby times have the wrong amount. Noise in float32 and round the result.
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
from diffusers import DDPMScheduler

print(", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers")))
LAW = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
times = torch.arange(1000)
exact = (1 - torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)).sqrt()


def added(dtype):
    """Amount of noise at each of the 1000 times: what `add_noise` makes of zero latents and unit noise."""
    zeros, noise = torch.zeros(1000, 1, 1, 1, dtype=dtype), torch.ones(1000, 1, 1, 1, dtype=dtype)
    return DDPMScheduler(**LAW).add_noise(zeros, noise, times).flatten().double()


none, off = {}, {}
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    amount = added(dtype)
    off[dtype] = ((amount - exact) / exact).abs().max().item()
    none[dtype] = int((amount == 0).sum())
    first = ", ".join(f"{value:.4f}" for value in amount[:6].tolist())
    print(
        f"{str(dtype)[6:]}: t = 0 to 5 {first}; no noise at {none[dtype]} times, "
        f"{len(amount.unique())} levels, off by up to {off[dtype]:.1%}"
    )
print("exact:", ", ".join(f"{value:.4f}" for value in exact[:6].tolist()))

shape = (2, 1, 1, 1)
ones, zeros = torch.ones(shape, dtype=torch.bfloat16), torch.zeros(shape, dtype=torch.bfloat16)
velocity = DDPMScheduler(**LAW).get_velocity(ones, zeros, torch.tensor([0, 1])).flatten().tolist()
print("get_velocity of unit latents without noise, bfloat16, t = 0 and 1:", velocity)

expected = (
    none == {torch.float32: 0, torch.float16: 0, torch.bfloat16: 2}
    and off[torch.float32] < 1e-3
    and velocity == [0.0, 0.0]
)
sys.exit(0 if expected else "the behaviour has changed")
PROGRAM
