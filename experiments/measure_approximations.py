"""Measure what approximations save and what they cost: seconds and distance from the exact picture.

    python -m experiments.measure_approximations                  the bundled model: the table of the docs
    python -m experiments.measure_approximations --model sd1 --steps 6 --pictures 1 --rounds 1 --dtype bfloat16
                                                                        Stable Diffusion 1's sizes, random weights

Every mode draws the same pictures from the same seeds, in turn with the exact ones: seconds are of all steps without
decoding, ratios are of neighbours in time. `steps=N` is no approximation of the network but the same with fewer steps,
for comparison.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import typer
from torch import Tensor

from benchmarks.model import ALL, open_model
from latent_diffusion.pipeline.engine.machine import Machine
from latent_diffusion.pipeline.pipeline import LatentDiffusionPipeline

PROMPTS = (
    "a 3d render of a red apple", "a flat vector illustration of a cat", "a black and white drawing of the sun",
    "a 3d render of a rocket", "a flat vector illustration of a house", "a black and white drawing of a banana",
)  # fmt: skip
MODES = (
    "deepcache:interval=2", "deepcache:interval=3", "deepcache:interval=5", "deepcache:interval=3,branch=1",
    "tome:ratio=0.25", "tome:ratio=0.5", "tome:ratio=0.75", "deepcache:interval=3 tome:ratio=0.5",
    "guidance_interval=0.2,0.8", "steps=0.5", "steps=0.33",
)  # fmt: skip


@dataclass
class Found:
    """What was measured of one mode."""

    ratios: list[float] = field(default_factory=list)  # exact seconds over its own, one a round
    errors: list[float] = field(default_factory=list)  # of latents, one a picture
    psnr: list[float] = field(default_factory=list)  # dB, one a picture


def options(mode: str, steps: int) -> dict[str, Any]:
    """Return what the pipeline is told: several approximations are parted by spaces."""
    name, _, value = mode.partition("=")
    if name == "steps":
        return {"num_inference_steps": round(steps * float(value))}
    if name == "guidance_interval":
        return {"guidance_interval": tuple(map(float, value.split(",")))}
    return {"approximate": mode.split()}


@torch.no_grad()
def pictures(pipe: LatentDiffusionPipeline, latents: Tensor) -> Tensor:
    """Return decoded pictures in [0, 1]."""
    parts = [pipe.components.autoencoder.to_images(part).float() for part in latents.split(1)]
    return torch.cat(parts).clamp(-1, 1) / 2 + 0.5


def compare(found: Found, near: Tensor, exact: Tensor, pipe: LatentDiffusionPipeline, decode: bool) -> None:
    """Note distances, picture by picture."""
    found.errors += ((near - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)).tolist()
    if decode:
        mse = (pictures(pipe, near) - pictures(pipe, exact)).square().flatten(1).mean(1)
        found.psnr += (-10 * mse.clamp(min=1e-12).log10()).tolist()


def measure(pipe: LatentDiffusionPipeline, modes: Sequence[str], told: dict[str, Any], count: int, rounds: int) -> None:
    """Print the table."""
    steps = told["num_inference_steps"]
    prompts = (PROMPTS * count)[:count]

    def draw(seed: int, more: dict[str, Any]) -> tuple[Tensor, float]:
        start = time.perf_counter()
        images = pipe(prompts, seed=seed, output_type="latent", **{**told, **more}).images
        assert isinstance(images, Tensor)
        return images, time.perf_counter() - start

    draw(0, {"num_inference_steps": 1})
    found = {mode: Found() for mode in modes}
    seconds = []
    for seed in range(rounds):
        for mode in modes:
            exact, before = draw(100 * seed, {})
            near, taken = draw(100 * seed, options(mode, steps))
            seconds.append(before)
            found[mode].ratios.append(before / taken)
            compare(found[mode], near, exact, pipe, decode=count > 1)
    print(f"exact: {statistics.median(seconds):.3g} s for {count} pictures in {steps} steps, {pipe.dtype}")
    print("| mode | times as fast | latents off, median (worst) | PSNR dB, median (worst) |\n|---|---|---|---|")
    for mode, row in found.items():
        psnr = f"{statistics.median(row.psnr):.1f} ({min(row.psnr):.1f})" if row.psnr else "-"
        off = f"{statistics.median(row.errors):.3f} ({max(row.errors):.3f})"
        print(f"| `{mode}` | {statistics.median(row.ratios):.2f} | {off} | {psnr} |")


def main(
    model: str = "emoji",
    steps: int = 0,
    pictures: int = len(PROMPTS),
    rounds: int = 3,
    dtype: str = "float32",
    size: int = 0,
    sampler: str = "",
    mode: list[str] | None = None,
) -> None:
    """Measure modes of one model; 0 and "" are the model's own choices."""
    source = open_model(model)
    machine: Any = {"dtype": dtype, "vae_dtype": dtype}
    start = time.perf_counter()
    components = source.build(ALL, Machine.choose(source.described, machine).dtype)
    pipe = LatentDiffusionPipeline(components, **machine)
    print(f"{model}: ready in {time.perf_counter() - start:.0f} s")
    told: dict[str, Any] = {"num_inference_steps": steps or pipe.defaults.num_inference_steps}
    told |= {"sampler": sampler} if sampler else {}
    told |= {"height": size, "width": size} if size else {}
    measure(pipe, mode or MODES, told, pictures, rounds)


if __name__ == "__main__":
    typer.run(main)
