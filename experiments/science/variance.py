"""What is a learned variance worth, and what a learned schedule? docs/science/variance.md.

    python -m experiments.science.variance [--learned FOLDER] [--schedule FILE] [--pictures 64] [--output FOLDER]

First both on a mixture of Gaussians with the exact denoiser (that of tests/diffusion/test_learned_schedule.py), then
with the bundled model. Variance: the variational bound of held-out pictures for the chain of the model's own 15 steps,
with each choice of the variance from the same noise. Schedule: mean and variance of the bound's estimate from one
level, at uniform times of the model's law and on the learned schedule, of the same pictures. Pictures: 150 prompts with
three seeds, drawn in 15 steps with either variance and judged as in `few_steps.py`.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments.measure_samplers import load
from experiments.science.few_steps import OWN, Case, judge, table
from experiments.science.figures import PAGES, Found, chart, fill, mean_and_error
from experiments.science.pictures import held_out, pictures_of_the_model
from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.diffusion.bound import bound_all_levels
from latent_diffusion.diffusion.denoiser import DenoiseAt
from latent_diffusion.diffusion.learned_schedule import (
    Rising,
    diffusion_term,
    ends,
    mean_square,
    noise_error,
    own_schedule,
)
from latent_diffusion.diffusion.spacing import times
from latent_diffusion.diffusion.variance import parted
from latent_diffusion.models.monotone import MonotoneNetwork
from latent_diffusion.randomness import normal, uniform

PAGE = PAGES / "variance.md"
BATCH = 16
STEPS = 15
BITS = 1024 * math.log(2.0)
DRAWS = 4  # of u for each picture
PARTS = ("known", "fixed", "learned", "drawn", "schedule")
FIXED = {"bundled, posterior's": -1.0, "bundled, forward step's": 1.0}
LEARNED = {"trained, posterior's": -1.0, "trained, learned": None}
"""Each model's mean with one v for all numbers, or with its own."""


def known(found: Found) -> None:
    """Learn one v for each of 15 steps, and a schedule, on a mixture of Gaussians with the exact denoiser."""
    data = load("tests/diffusion/test_learned_schedule.py")
    law = data.LAW
    visited = sorted(int(t) for t in times("trailing", STEPS, law.num_train_timesteps))
    place = {time: k for k, time in enumerate(visited)}

    def made(count: int, seed: int, v: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed)

        def draw() -> Tensor:
            return torch.randn(count, 4, 2, 2, generator=generator, dtype=torch.float64)

        x0 = data.MEANS[0, torch.randint(3, (count,), generator=generator)] + data.SPREAD * draw()

        def denoise(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            return data.mixture(x, t), v[place[int(t[0])]].expand_as(x)

        return bound_all_levels(denoise, law, x0, draw, visited) / (x0[0].numel() * math.log(2.0))

    v = torch.full((STEPS,), -1.0, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([v], 0.1)
    for update in range(100):
        optimizer.zero_grad()
        made(64, update, v).mean().backward()
        optimizer.step()
    rising = MonotoneNetwork(*ends(law)).double()
    optimizer = torch.optim.Adam(rising.parameters(), 0.05)
    for update in range(150):
        optimizer.zero_grad()
        mean_square(rising, data.evenly(64, update), lambda gamma, k=update: data.errors(gamma, k)).mean().backward()
        optimizer.step()
    u = torch.rand(6000, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    with torch.no_grad():
        for name, values in (
            ("posterior's", torch.full_like(v, -1)),
            ("forward step's", torch.full_like(v, 1)),
            ("learned", v),
        ):
            found[f"mixture, {name}"] = made(2000, 1000, values).tolist()
        for name, schedule in (("own", own_schedule(law)), ("learned", rising)):
            gamma, slope = schedule(u)
            found[f"mixture, estimates, {name}"] = (
                diffusion_term(data.errors(gamma, 9), slope) / (16 * math.log(2.0))
            ).tolist()
        found["mixture, shares"] = [(time, (1 + float(value)) / 2) for time, value in zip(visited, v, strict=True)]
        grid = torch.linspace(0, 1, 26, dtype=torch.float64)
        for name, schedule in (("own", own_schedule(law)), ("learned", rising)):
            found[f"mixture, gamma, {name}"] = list(zip(grid.tolist(), schedule(grid)[0].tolist(), strict=True))


def write_known(found: Found) -> None:
    """Put the tables and the chart of known data on the page."""
    _write_variance(
        found, "known variance", [f"mixture, {name}" for name in ("posterior's", "forward step's", "learned")]
    )
    _write_schedule(found, "known schedule", "mixture, estimates")
    curves = {
        "-log SNR over u": {
            title: found[f"mixture, gamma, {name}"]
            for name, title in (("own", "uniform times"), ("learned", "learned schedule"))
        },
        "share f by time": {"learned variance": found["mixture, shares"]},
    }
    (PAGES / "variance.svg").write_text(chart(curves, ""))


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
        x0, _ = parted(denoise(x, t))
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


def _write_variance(found: Found, mark: str, names: Sequence[str]) -> None:
    """Put bounds on the page; the first is what the others are compared with."""
    base = np.array(found[names[0]])
    lines = ["| variance | bits per dimension | difference to the first row, by picture |", "|---|---|---|"]
    for name in names:
        values = np.array(found[name])
        apart = "" if name == names[0] else mean_and_error(values - base, 3)
        lines.append(f"| {name} | {mean_and_error(values, 3)} | {apart} |")
    fill(PAGE, mark, lines)


def _write_schedule(found: Found, mark: str, stem: str) -> None:
    """Put the estimates on the page."""
    own = np.array(found[f"{stem}, own"])
    lines = ["| levels | bits per dimension | variance | in that of the law |", "|---|---|---|---|"]
    for name, title in (("own", "uniform times of the law"), ("learned", "learned schedule")):
        values = np.array(found[f"{stem}, {name}"])
        ratio = values.var(ddof=1) / own.var(ddof=1)
        lines.append(f"| {title} | {mean_and_error(values, 3)} | {values.var(ddof=1):.3f} | {ratio:.4f} |")
    fill(PAGE, mark, lines)


def main() -> int:
    """Measure what is not measured yet, and write the page's tables and figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--learned", default="runs/science/learned_variance/model")
    parser.add_argument("--schedule", type=Path, default=Path("runs/science/learned_schedule/model/schedule.json"))
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--output", type=Path, default=Path("runs/science/variance"))
    asked = parser.parse_args()
    found = Found(asked.output / "found.json")
    if "known" in asked.parts:
        if "mixture, shares" not in found:
            known(found)
        write_known(found)
    if asked.parts == ["known"]:
        return 0
    with torch.no_grad():
        return bundled(asked, found)


def bundled(asked: argparse.Namespace, found: Found) -> int:
    """Measure the bundled model with what was trained on from it."""
    pipe = LatentDiffusionPipeline.from_pretrained("emoji", dtype="float32")
    pictures, own = Pictures(pipe, asked.pictures), own_schedule(pipe.components.schedule)
    if "fixed" in asked.parts:
        for name, v in FIXED.items():
            if name not in found:
                found[name] = bound(pipe, pictures, v)
        if "estimates, own" not in found:
            found["estimates, own"] = estimates(pipe, pictures, own)
    if "learned" in asked.parts:
        trained = LatentDiffusionPipeline.from_pretrained(asked.learned, dtype="float32")
        for name, v in LEARNED.items():
            if name not in found:
                found[name] = bound(trained, pictures, v)
        if "shares" not in found:
            found["shares"] = by_level(trained, pictures)
        _write_variance(found, "variance", [*FIXED, *LEARNED])
    if "drawn" in asked.parts:
        pipes = {"teacher": pipe, "trained": LatentDiffusionPipeline.from_pretrained(asked.learned, dtype="float32")}
        wanted = [Case(name, OWN, "", STEPS) for name in pipes]
        fill(PAGE, "drawn", table(judge(pipes, wanted, 150, 3, asked.output / "drawn.json"), wanted, 3))
    if "schedule" in asked.parts:
        learned = read_schedule(asked.schedule)
        if "estimates, learned" not in found:
            found["estimates, learned"] = estimates(pipe, pictures, learned)
        _write_schedule(found, "schedule", "estimates")
    return 0


if __name__ == "__main__":
    sys.exit(main())
