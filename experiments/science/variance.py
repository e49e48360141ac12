"""What is a learned variance worth, and what a learned schedule? docs/science/variance.md.

    python -m experiments.science.variance [--learned FOLDER] [--schedule FILE] [--pictures 64] [--output FOLDER]

Variance: the variational bound of held-out pictures for the chain of the model's own 15 steps, with each choice of the
variance from the same noise. Schedule: mean and variance of the bound's estimate from one level, at uniform times of
the model's law and on the learned schedule, of the same pictures.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments.science.figures import PAGES, Found, chart, fill
from experiments.science.pictures import held_out, pictures_of_the_model
from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.diffusion.bound import bound_all_levels
from latent_diffusion.diffusion.denoiser import DenoiseAt
from latent_diffusion.diffusion.learned_schedule import Rising, diffusion_term, noise_error, own_schedule
from latent_diffusion.diffusion.spacing import times
from latent_diffusion.randomness import normal, uniform

PAGE = PAGES / "variance.md"
BATCH = 16
STEPS = 15
BITS = 1024 * math.log(2.0)
DRAWS = 4  # of u for each picture
FIXED = {"bundled, posterior's": ("bundled", -1.0), "bundled, forward step's": ("bundled", 1.0)}
LEARNED = {"trained, posterior's": ("trained", -1.0), "trained, learned": ("trained", None)}


class Pictures:
    """Latents of held-out pictures with their captions."""

    def __init__(self, pipe: LatentDiffusionPipeline, count: int) -> None:
        pictures = pictures_of_the_model()
        rows = held_out(pictures, count)
        images = pictures.load(rows, pipe.defaults.height)
        self.latents = torch.cat([pipe.components.autoencoder.to_latents(part).float() for part in images.split(BATCH)])
        self.texts = [row.text for row in rows]

    def parts(self) -> list[slice]:
        """Return the batches."""
        return [slice(k, min(k + BATCH, len(self.texts))) for k in range(0, len(self.texts), BATCH)]


def bound(pipe: LatentDiffusionPipeline, pictures: Pictures, v: float | None) -> list[float]:
    """Return the bound of each picture in bits per dimension, for 15 steps with v; None = the model's own."""
    law, values = pipe.components.schedule, list[float]()
    visited = sorted(int(t) for t in times("trailing", STEPS, law.num_train_timesteps))
    for part in pictures.parts():
        x0 = pictures.latents[part]
        denoise = pipe.components.denoiser(pipe.components.unet).bind_times(
            pipe.components.text_encoder(pictures.texts[part])
        )
        draw = _draws(range(len(pictures.texts))[part], x0)
        values += (bound_all_levels(_with(denoise, v), law, x0, draw, visited) / BITS).tolist()
    return values


def _with(denoise: DenoiseAt, v: float | None) -> DenoiseAt:
    """Return the denoiser with one v for all numbers; None = its own."""
    if v is None:
        return denoise

    def fixed(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        made = denoise(x, t)
        x0 = made[0] if isinstance(made, tuple) else made
        return x0, torch.full_like(x0, v)

    return fixed


def _draws(numbers: range, x0: Tensor) -> Callable[[], Tensor]:
    """Return a source of noise that starts anew for every choice of the variance."""
    step = iter(range(10_000))
    return lambda: normal(next(step), "bound", numbers, x0.shape[1:]).to(x0)


def by_level(pipe: LatentDiffusionPipeline, pictures: Pictures) -> list[tuple[int, float]]:
    """Return the mean share f = (1 + v) / 2 of the way from the posterior's variance to the forward step's, by time."""
    law, found = pipe.components.schedule, list[tuple[int, float]]()
    part = pictures.parts()[0]
    x0 = pictures.latents[part]
    cond = pipe.components.text_encoder(pictures.texts[part])
    denoise = pipe.components.denoiser(pipe.components.unet).bind_times(cond)
    for time in sorted(int(t) for t in times("trailing", STEPS, law.num_train_timesteps)):
        level = law.level(time)
        x = level.alpha * x0 + level.sigma * normal(time, "shares", range(len(x0)), x0.shape[1:]).to(x0)
        _, v = denoise(x, torch.full((len(x0),), time))
        found.append((time, float((1 + v).mean()) / 2))
    return found


def estimates(pipe: LatentDiffusionPipeline, pictures: Pictures, rising: Rising) -> list[float]:
    """Return estimates of the bound's diffusion term, bits per dimension, each from one level of one picture."""
    law, values = pipe.components.schedule, list[float]()
    total = len(pictures.texts) * DRAWS
    for draw in range(DRAWS):
        for part in pictures.parts():
            numbers = [draw * len(pictures.texts) + k for k in range(len(pictures.texts))[part]]
            u = torch.tensor([uniform(0, "schedule", number) for number in numbers], dtype=torch.float64)
            x0 = pictures.latents[part]
            denoise = pipe.components.denoiser(pipe.components.unet).bind_times(
                pipe.components.text_encoder(pictures.texts[part])
            )
            gamma, slope = rising(u)
            error = noise_error(denoise, law, x0, normal(0, "schedule", numbers, x0.shape[1:]).to(x0), gamma)
            values += (diffusion_term(error.double(), slope) / BITS).tolist()
    assert len(values) == total
    return values


def read_schedule(file: Path) -> Rising:
    """Return the schedule of a table of levels, straight between them."""
    gamma = -np.array(json.loads(file.read_text())["log_snr"])
    parts = len(gamma) - 1

    def rising(u: Tensor) -> tuple[Tensor, Tensor]:
        rows = np.minimum((u.numpy() * parts).astype(int), parts - 1)
        low, high = gamma[rows], gamma[rows + 1]
        value, slope = low + (u.numpy() * parts - rows) * (high - low), (high - low) * parts
        return torch.from_numpy(value), torch.from_numpy(slope)

    return rising


def write_variance(found: Found) -> None:
    """Put the bounds and the shares on the page."""
    names = [name for name in (*FIXED, *LEARNED) if name in found]
    base = np.array(found[names[0]])
    lines = [
        "| mean and variance | bits per dimension | difference to the first row, by picture |",
        "|---|---|---|",
    ]
    for name in names:
        values = np.array(found[name])
        apart = "" if name == names[0] else mean_and_error(values - base)
        lines.append(f"| {name} | {mean_and_error(values)} | {apart} |")
    fill(PAGE, "variance", lines)


def write_schedule(found: Found) -> None:
    """Put the estimates on the page."""
    own = np.array(found["estimates, own"])
    lines = ["| levels | bits per dimension | variance | in that of the law |", "|---|---|---|---|"]
    for name in ("own", "learned"):
        values = np.array(found[f"estimates, {name}"])
        ratio = values.var(ddof=1) / own.var(ddof=1)
        title = "uniform times of the law" if name == "own" else "learned schedule"
        lines.append(f"| {title} | {mean_and_error(values)} | {values.var(ddof=1):.3f} | {ratio:.2f} |")
    fill(PAGE, "schedule", lines)


def draw_chart(found: Found, schedule: Rising, own: Rising) -> None:
    """Write the chart of the two schedules and of the learned shares."""
    u = torch.linspace(0, 1, 26, dtype=torch.float64)
    curves = {
        "-log SNR over u": {
            name: list(zip(u.tolist(), each(u)[0].tolist(), strict=True))
            for name, each in (("uniform times", own), ("learned schedule", schedule))
        },
        "share f by time": {"learned variance": [(time, share) for time, share in found["shares"]]},
    }
    (PAGES / "variance.svg").write_text(chart(curves, ""))


def mean_and_error(values: np.ndarray) -> str:
    """Return "mean ± standard error"."""
    return f"{values.mean():.3f} ± {values.std(ddof=1) / len(values) ** 0.5:.3f}"


def main() -> int:
    """Measure what is not measured yet, and write the page's tables and figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--learned", default="runs/science/learned_variance/model")
    parser.add_argument("--schedule", type=Path, default=Path("runs/science/learned_schedule/model/schedule.json"))
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--output", type=Path, default=Path("runs/science/variance"))
    asked = parser.parse_args()
    found = Found(asked.output / "found.json")
    models = {"bundled": "emoji", "trained": asked.learned}
    pipes = {name: LatentDiffusionPipeline.from_pretrained(model, dtype="float32") for name, model in models.items()}
    pictures, bundled = Pictures(pipes["bundled"], asked.pictures), pipes["bundled"]
    for name, (model, v) in (FIXED | LEARNED).items():
        if name not in found:
            found[name] = bound(pipes[model], pictures, v)
        print(name, mean_and_error(np.array(found[name])), file=sys.stderr, flush=True)
    if "shares" not in found:
        found["shares"] = by_level(pipes["trained"], pictures)
    write_variance(found)
    own, learned = own_schedule(bundled.components.schedule), read_schedule(asked.schedule)
    for name, rising in (("own", own), ("learned", learned)):
        if f"estimates, {name}" not in found:
            found[f"estimates, {name}"] = estimates(bundled, pictures, rising)
    write_schedule(found)
    draw_chart(found, learned, own)
    return 0


if __name__ == "__main__":
    with torch.no_grad():
        sys.exit(main())
