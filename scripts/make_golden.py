"""Remake tests/golden/samplers.json: slices of what each sampler makes with a tiny seeded model.

    python scripts/make_golden.py

Run it only when a change of the numbers is meant, and write the reason into the commit. The weights come from keyed
random numbers (numpy's Philox), so they are the same on every machine and with every version of torch.
"""

import json
import math
from pathlib import Path

import torch

from latent_diffusion.conditioning import Conditioning
from latent_diffusion.diffusion.denoiser import Denoiser
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.prediction import V
from latent_diffusion.diffusion.spacing import levels
from latent_diffusion.families import tiny
from latent_diffusion.guidance.cfg import CFG
from latent_diffusion.models.unet import UNet
from latent_diffusion.randomness import normal
from latent_diffusion.registry import find, names
from latent_diffusion.schedules.scaled_linear import ScaledLinearSchedule

GOLDEN = Path(__file__).parent.parent / "tests" / "golden" / "samplers.json"
SEEDS = (0, 1)
STEPS = 10
SPACINGS = ("leading", "trailing", "karras")
SHAPE = (4, 8, 8)


def seeded_unet() -> UNet:
    """The tiny U-Net with keyed weights, scaled so that activations keep their size."""
    unet = UNet(tiny.UNET).eval()
    for name, parameter in unet.named_parameters():
        draw = normal(0, name, [0], parameter.shape)[0]
        if parameter.dim() > 1:
            value = draw / math.sqrt(parameter[0].numel())
        else:
            value = 0.1 * draw + (1.0 if name.endswith("weight") else 0.0)
        parameter.data.copy_(value)
    return unet


@torch.no_grad()
def golden_slices() -> dict[str, list[float]]:
    """Return for "sampler/spacing" the first 16 values of row 3 of every seed's latent, guided, after 10 steps."""
    schedule = ScaledLinearSchedule()
    denoiser = Denoiser(seeded_unet(), schedule, V)
    contexts = [normal(0, purpose, SEEDS, (7, tiny.UNET.cross_attention_dim)) for purpose in ("prompt", "negative")]
    denoise = CFG(3.0).bind(denoiser, *(Conditioning(context) for context in contexts))
    slices = {}
    for name in names("latent_diffusion.samplers"):
        sampler = find("latent_diffusion.samplers", name)()
        for spacing in SPACINGS:
            noise = NoiseSource(SEEDS)
            habits = {"intervals": sampler.intervals, "fractional": sampler.fractional}
            visited = levels(schedule, spacing, STEPS, steps_offset=1, **habits)
            *_, last = sampler(denoise, noise.draw(SHAPE), visited, noise)
            slices[f"{name}/{spacing}"] = last.x[:, :2, 3].flatten().tolist()
    return slices


def main() -> None:
    rounded = {key: [float(f"{value:.8g}") for value in values] for key, values in golden_slices().items()}
    GOLDEN.write_text(json.dumps(rounded, indent=1) + "\n")
    print(f"{GOLDEN}: {len(rounded)} slices")


if __name__ == "__main__":
    main()
