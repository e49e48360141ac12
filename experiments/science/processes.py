"""Other processes than diffusion, on data whose law is known: docs/science/processes.md.

    python -m experiments.science.processes [--only PART] [--runs FOLDER] [--output FOLDER]

First, without a network: errors of the samplers of critically damped Langevin diffusion with the exact score of a
Gaussian, exactly (the helpers of tests/diffusion/test_critically_damped.py). Then the networks that
configs/science/plane_*.yaml train on 25 Gaussians in the plane: how many are found, how many points lie on one, and the
distance of the drawn points from the law (sliced Wasserstein-1), of 10,000 points and three seeds each. Of the latent
score model, the bound on 100,000 points.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from experiments.measure_samplers import load
from experiments.science.figures import PAGES, Found, chart, fill, save_picture
from latent_diffusion.diffusion.critically_damped import Damped
from latent_diffusion.diffusion.damped_steps import EulerMaruyama, Splitting, falling_times
from latent_diffusion.diffusion.denoising_gan import draw_pictures, large_steps
from latent_diffusion.diffusion.level import Level
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.prediction import V
from latent_diffusion.diffusion.spacing import levels
from latent_diffusion.samplers.ddim import DDIM
from latent_diffusion.samplers.ddpm import DDPM
from latent_diffusion.samplers.dpmpp_2m import DPMpp2M
from latent_diffusion.schedules.linear import LinearSchedule
from latent_diffusion.training.losses.points.latent_score import LatentModel
from latent_diffusion.training.objectives.plane import PlanePoints, load_plane

PAGE = PAGES / "processes.md"
COUNT = 10_000
SEEDS = (0, 1, 2)
EXACT = (25, 50, 100, 200, 400)
DAMPED = {"euler": (EulerMaruyama(), 1), "splitting": (Splitting(), 1), "splitting, midpoint": (Splitting(2), 2)}
DIFFUSION = {"ddim": DDIM(), "ddpm": DDPM(), "dpmpp_2m": DPMpp2M()}
LATENT = {
    "autoencoder": "plane_latent",
    "autoencoder, twice as many updates": "plane_latent_longer",
    "prior of its frozen latents": "plane_latent_prior",
    "both together": "plane_latent_joint",
}
BUDGETS = (25, 50, 100)
SMALL = (1, 2, 4, 8, 25, 50)
NEAR = 4  # deviations: within them a point is on a Gaussian
DIRECTIONS = 64


def exact(found: Found) -> None:
    """Measure the samplers' errors with the exact score of N(.7, .5^2)."""
    law = load("tests/diffusion/test_critically_damped.py")
    for name, (sampler, each) in DAMPED.items():
        for evaluations in EXACT:
            key = f"exact, {name}, {evaluations}"
            if key not in found:
                found[key] = law.errors_of_data(sampler, falling_times(evaluations // each), law.SPREAD)


class ManyPoints(NoiseSource):
    """Noise of many points from one stream."""

    def draw(self, shape: Sequence[int]) -> Tensor:
        """Draw standard normal numbers (COUNT, *shape)."""
        return super().draw((COUNT, *shape))[0]


def true_points(data: PlanePoints, seed: int) -> Tensor:
    """Return points of the law itself, (COUNT, 2)."""
    random = np.random.default_rng([2, seed])
    kinds = random.integers(data.side**2, size=COUNT)
    return data.centres()[kinds] + data.spread * torch.from_numpy(random.standard_normal((COUNT, 2)))


def judged(points: Tensor, data: PlanePoints, seed: int) -> dict[str, float]:
    """Return how many Gaussians are found, the share of points on one, and the distance from the law."""
    off = (points.double()[:, None] - data.centres()).norm(dim=2).min(1)
    on = off.values < NEAR * data.spread
    counts = torch.bincount(off.indices[on], minlength=data.side**2)
    angles = torch.arange(DIRECTIONS, dtype=torch.float64) * torch.pi / DIRECTIONS
    ways = torch.stack([angles.cos(), angles.sin()])
    wanted, made = ((p.double() @ ways).sort(0).values for p in (true_points(data, 100 + seed), points))
    return {
        "found": float((counts > COUNT / data.side**2 / 5).sum()),
        "on": float(on.double().mean()),
        "distance": float((wanted - made).abs().mean()),
    }


def measure(found: Found, key: str, data: PlanePoints, output: Path, draw: Callable[[int], Tensor]) -> None:
    """Draw with each seed, and keep what was found and the first points."""
    if key in found:
        return
    drawn = [draw(seed) for seed in SEEDS]
    np.save(output / f"{key}.npy", drawn[0].float().numpy())
    rows = [judged(points, data, seed) for points, seed in zip(drawn, SEEDS, strict=True)]
    found[key] = {name: [row[name] for row in rows] for name in rows[0]}
    print(key, found[key], file=sys.stderr, flush=True)


def damped(found: Found, runs: Path, output: Path) -> None:
    """Measure critically damped Langevin diffusion by its samplers, all with one network."""
    network, _, data = load_plane(runs / "plane_damped" / "model")
    score = Damped().score(network)
    measure(found, "truth", data, output, lambda seed: true_points(data, seed))
    for name, (sampler, each) in DAMPED.items():
        for evaluations in BUDGETS:

            def drawn(seed: int, sampler=sampler, steps=evaluations // each) -> Tensor:
                noise = ManyPoints([seed])
                *_, u = sampler(score, noise.draw((4,)), falling_times(steps), noise.draw)
                return u[:, :2]

            measure(found, f"damped, {name}, {evaluations}", data, output, drawn)


def gan(found: Found, runs: Path, output: Path) -> None:
    """Measure the denoising GAN, and diffusion of as much training time."""
    network, settings, data = load_plane(runs / "plane_gan" / "model")
    values = settings.gan_settings

    def generated(seed: int) -> Tensor:
        noise = ManyPoints([seed])
        *_, last = draw_pictures(network, noise.draw((2,)), values.latents, large_steps(values.steps), noise.draw)
        return last.x

    measure(found, f"gan, {values.steps}", data, output, generated)

    denoising, _, _ = load_plane(runs / "plane_diffusion" / "model")
    schedule = LinearSchedule()

    def denoise(x: Tensor, level: Level) -> Tensor:
        t = torch.full((len(x),), level.t)
        return V.x0(denoising(x, t), x, level.alpha, level.sigma)

    for name, sampler in DIFFUSION.items():
        for steps in SMALL:

            def drawn(seed: int, sampler=sampler, steps=steps) -> Tensor:
                noise = ManyPoints([seed])
                visited = levels(schedule, "trailing", steps)
                *_, last = sampler(denoise, noise.draw((2,)), visited, noise)
                return last.x

            measure(found, f"diffusion, {name}, {steps}", data, output, drawn)


def latent(found: Found, runs: Path, output: Path) -> None:
    """Measure the negative bound of the three stages of a latent score model, on points that no run has seen."""
    of_one = math.log(2 * math.pi * math.e * PlanePoints().spread ** 2)
    found["latent, entropy"] = math.log(PlanePoints().side ** 2) + of_one
    for stage, folder in LATENT.items():
        if f"latent, {stage}" in found:
            continue
        model, _, data = load_plane(runs / folder / "model")
        assert isinstance(model, LatentModel), "the configuration trains one"
        bounds = list[Tensor]()
        for part in range(10):
            x = true_points(data, 200 + part).float()
            drawn = ManyPoints([part]).draw((5,))
            noise, u = drawn[:, :4], torch.special.ndtr(drawn[:, 4])  # u is uniform
            bounds.append(model.negative_bound(x, noise, None if stage.startswith("autoencoder") else u).double())
        values = torch.cat(bounds)
        found[f"latent, {stage}"] = [float(values.mean()), float(values.std() / len(values) ** 0.5)]
        print(stage, found[f"latent, {stage}"], file=sys.stderr, flush=True)


def cell(values: Sequence[float], digits: int) -> str:
    """Return mean and deviation over seeds."""
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


HEAD = ["| process | sampler | evaluations | Gaussians found | points on one | distance x1000 |", "|---" * 6 + "|"]


def row(found: Found, key: str, process: str, sampler: str, evaluations: int) -> str:
    """Return a row of a table of drawn points."""
    one = found[key]
    seen = f"{cell(one['found'], 1)} | {cell([100 * share for share in one['on']], 1)} % | "
    seen += cell([1000 * distance for distance in one["distance"]], 1)
    return f"| {process} | {sampler} | {evaluations or ''} | {seen} |"


def curve(found: Found, kind: str, name: str, budgets: Sequence[int], figure: str) -> list[tuple[float, float]]:
    """Return the mean of a figure by evaluations."""
    return [(n, float(np.mean(found[f"{kind}, {name}, {n}"][figure]))) for n in budgets]


def write_exact(found: Found) -> None:
    """Put the table of errors with the exact score on the page."""
    lines = ["| sampler | " + " | ".join(map(str, EXACT)) + " |", "|---" * (len(EXACT) + 1) + "|"]
    for name in DAMPED:
        pairs = [found[f"exact, {name}, {n}"] for n in EXACT]
        lines.append(f"| {name} | " + " | ".join(f"{mean:.4f}, {variance:.4f}" for mean, variance in pairs) + " |")
    fill(PAGE, "exact", lines)


def write_damped(found: Found, output: Path) -> None:
    """Put table, chart and picture of critically damped Langevin diffusion on the page."""
    rows = [row(found, f"damped, {s}, {n}", "damped", s, n) for n in BUDGETS for s in DAMPED]
    fill(PAGE, "damped", [*HEAD, *rows, row(found, "truth", "the law itself", "", 0)])
    on = {name: curve(found, "damped", name, BUDGETS, "on") for name in DAMPED}
    distance = {name: curve(found, "damped", name, BUDGETS, "distance") for name in DAMPED}
    panels = {"share of points on a Gaussian": on, "distance from the law": distance}
    (PAGES / "processes.svg").write_text(chart(panels, "evaluations", even=True))
    show(("truth", "damped, euler, 25", "damped, splitting, 25"), output, PAGES / "processes.webp")


def write_gan(found: Found, output: Path) -> None:
    """Put table and picture of the denoising GAN on the page."""
    listed = [("gan, 4", "denoising GAN", "", 4)]
    listed += [(f"diffusion, {s}, {n}", "diffusion", f"`{s}`", n) for n in (4, 8, 25, 50) for s in DIFFUSION]
    fill(PAGE, "gan", [*HEAD, *(row(found, *one) for one in listed if one[0] in found)])
    shown = ("truth", "gan, 4", "diffusion, ddpm, 4", "diffusion, dpmpp_2m, 4")
    show([key for key in shown if key in found], output, PAGES / "processes-gan.webp")


def write_latent(found: Found) -> None:
    """Put the table of the latent score model on the page."""
    lines = ["| stage | negative bound on log p(x), nats |", "|---|---|"]
    lines += [
        "| {} | {:.4f} ± {:.4f} |".format(stage, *found[f"latent, {stage}"])
        for stage in LATENT
        if f"latent, {stage}" in found
    ]
    fill(PAGE, "latent", [*lines, f"| the law's entropy | {found['latent, entropy']:.4f} |"])


def show(keys: Sequence[str], output: Path, path: Path) -> None:
    """Write the drawn points of some runs side by side."""
    sheet = Image.new("L", (len(keys) * 204 - 4, 200), 255)
    for place, key in enumerate(keys):
        points = np.load(output / f"{key}.npy")
        counts, _, _ = np.histogram2d(-points[:, 1], points[:, 0], bins=200, range=[[-2, 2], [-2, 2]])
        tone = (255 * (1 - np.minimum(counts / 3, 1))).astype(np.uint8)
        sheet.paste(Image.fromarray(tone), (204 * place, 0))
    save_picture(sheet.convert("RGB"), path)


def main() -> int:
    """Measure what is not measured yet, and write the page's tables and figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/science"))
    parser.add_argument("--output", type=Path, default=Path("runs/science/processes"))
    parser.add_argument("--only", choices=["exact", "damped", "gan", "latent"])
    asked = parser.parse_args()
    found, began = Found(asked.output / "found.json"), time.process_time()
    asked.output.mkdir(parents=True, exist_ok=True)
    if asked.only in (None, "exact"):
        exact(found)
        write_exact(found)
    if asked.only in (None, "damped"):
        damped(found, asked.runs, asked.output)
        write_damped(found, asked.output)
    if asked.only in (None, "gan"):
        gan(found, asked.runs, asked.output)
        write_gan(found, asked.output)
    if asked.only in (None, "latent"):
        latent(found, asked.runs, asked.output)
        write_latent(found)
    found["minutes"] = found.values.get("minutes", 0) + round((time.process_time() - began) / 60, 1)
    return 0


if __name__ == "__main__":
    with torch.no_grad():
        sys.exit(main())
