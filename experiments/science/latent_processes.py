"""Other processes than diffusion on latents of pictures: docs/science/processes.md.

    python -m experiments.science.latent_processes [--minutes 8] [--seeds 0 1 2] [--pictures 500] [--turn MINUTES]

Diffusion, critically damped Langevin diffusion and a denoising GAN of four steps learn the latents of the flat icons
for the same processor time each, with one U-Net's size. Each draws pictures, which are compared with the real ones by
features of EfficientNet-Lite0. A run that is stopped goes on where it was; `--turn` ends it after so many minutes by
the clock.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from experiments.science.families.family import Family
from experiments.science.families.on_latents import DampedLatents, DenoisingGAN, LatentDiffusion
from experiments.science.families.page import figure
from experiments.science.families.run import STYLE, TurnIsOver
from experiments.science.families.training import Training
from experiments.science.figures import PAGES, Found, fill, save_picture
from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.checkpoint.files.safetensors_file import read_tensors, write_tensors
from latent_diffusion.data.pictures.images import to_pil
from latent_diffusion.diffusion.damped_steps import EulerMaruyama, Splitting
from latent_diffusion.evaluation.features import extract
from latent_diffusion.evaluation.kid import kid
from latent_diffusion.evaluation.pictures import read_pictures
from latent_diffusion.evaluation.recall import precision_and_recall
from latent_diffusion.models.efficientnet_lite import load_efficientnet_lite0
from latent_diffusion.runtime.precision import bfloat16_is_fast

PAGE = PAGES / "processes.md"
PIXELS = 64
SHOWN = 10
SEED_OF_DRAWINGS = 1
FAMILIES: dict[str, Callable[[], Family]] = {
    "denoising GAN": DenoisingGAN,
    "diffusion": LatentDiffusion,
    "damped": DampedLatents,
}


class Way(NamedTuple):
    """A way to draw with a trained family."""

    family: str
    sampler: str
    evaluations: int
    options: dict[str, Any]


FEW = [
    Way("denoising GAN", "", 4, {}),
    *(Way("diffusion", name, 4, {"sampler": name, "steps": 4}) for name in ("ddim", "ddpm", "dpmpp_2m")),
    Way("diffusion", "dpmpp_2m", 20, {"sampler": "dpmpp_2m", "steps": 20}),
]
DAMPED = [
    Way("damped", name, budget, {"sampler": sampler, "steps": budget // each})
    for budget in (25, 50)
    for name, sampler, each in (("euler", EulerMaruyama(), 1), ("splitting", Splitting(), 1))
]
ON_SHEET = (FEW[0], FEW[3], FEW[4], DAMPED[2], DAMPED[3])


class Latents:
    """The latents of all flat icons, and the judge's features of the icons, which no autoencoder has changed."""

    def __init__(self, folder: Path) -> None:
        """Encode the pictures, or read what was kept in `folder`."""
        self.autoencoder = LatentDiffusionPipeline.from_pretrained(
            "emoji", device="cpu", dtype="float32"
        ).components.autoencoder
        network = load_efficientnet_lite0()
        self.features: Callable[[Tensor], Tensor] = lambda images: extract(network, images).head
        kept = folder / "latents.safetensors"
        if not kept.exists():
            opened = read_pictures("assets/emoji-128.zip")
            rows = [row for row in opened.rows if row.style == STYLE and row.split == "train"]
            images = opened.load(rows, PIXELS)
            latents = torch.cat([self.autoencoder.to_latents(part) for part in images.split(32)])
            write_tensors(kept, {"latents": latents, "pictures": self.features(images)})
        read = read_tensors(kept)
        self.train, self.real = read["latents"], read["pictures"]

    def pictures(self, latents: Tensor) -> Tensor:
        """Return the pictures (B, 3, 64, 64) of latents, in [-1, 1]."""
        return torch.cat([self.autoencoder.to_images(part).clamp(-1, 1) for part in latents.split(32)])

    def compared(self, pictures: Tensor, rows: Tensor | None = None) -> dict[str, float]:
        """Return KID to all real pictures, precision and recall beside as many, and how many are nearest to some.

        `rows` are the numbers of the real pictures that `pictures` were made of, which are left out.
        """
        drawn, numbers = self.features(pictures), torch.arange(len(self.real))
        real = self.real if rows is None else self.real[~torch.isin(numbers, rows)]
        among = precision_and_recall(spread_rows(real, min(len(drawn), len(real))), drawn)
        nearest = torch.cdist(drawn.double(), real.double()).argmin(1)
        return {
            "kid": kid(drawn, real),
            "precision": among.precision,
            "recall": among.recall,
            "nearest": len(nearest.unique()) / len(nearest),
        }


def spread_rows(rows: Tensor, count: int) -> Tensor:
    """Return `count` rows at even distances."""
    return rows[torch.linspace(0, len(rows) - 1, count).long()]


def key(way: Way, seed: int, asked: argparse.Namespace) -> str:
    """Return the name of a way to draw among the figures."""
    return f"{way.family}, {way.sampler}, {way.evaluations}, {seed}, {asked.minutes:g} min, {asked.pictures}"


def file_of(way: Way, asked: argparse.Namespace) -> Path:
    """Return where the first drawings of a way are kept."""
    return asked.output / f"{key(way, asked.seeds[0], asked)}.npy"


def train(asked: argparse.Namespace, data: Latents, name: str, seed: int, check: Callable[[], None]) -> Training:
    """Train until the minutes are over; the family then has its averaged weights."""
    precision = "bfloat16" if bfloat16_is_fast(torch.device("cpu")) else "float32"
    training = Training(FAMILIES[name], data.train, seed, read=lambda latents, draws: latents, precision=precision)
    folder = asked.output / f"{name.replace(' ', '-')}-{seed}"
    for _ in training.go_on(folder, asked.minutes):
        print(f"{name} {seed}: {training.spent / 60:.1f} min, {training.updates}", file=sys.stderr, flush=True)
        check()
    average = folder / f"average-{asked.minutes:g}.safetensors"
    if not average.exists():
        has = f"{folder} has {training.spent / 60:.1f} minutes of training, and no weights of {asked.minutes:g}"
        raise SystemExit(f"--minutes {asked.minutes:g}: {has}; give more, or another --output")
    training.family.load_state_dict(read_tensors(average))
    training.family.eval()
    return training


@torch.no_grad()
def judge(asked: argparse.Namespace, data: Latents, way: Way, seed: int, family: Family, found: Found) -> None:
    """Draw and compare with the real pictures; the first drawings are kept."""
    began = time.process_time()
    latents = family.sample(asked.pictures, SEED_OF_DRAWINGS, **way.options)
    seconds = (time.process_time() - began) / asked.pictures
    pictures = data.pictures(latents)
    if seed == asked.seeds[0]:
        np.save(file_of(way, asked), pictures[:SHOWN].numpy())
    found[key(way, seed, asked)] = data.compared(pictures) | {"seconds": seconds}
    print(key(way, seed, asked), found[key(way, seed, asked)], file=sys.stderr, flush=True)


def table(found: Found, ways: Sequence[Way], asked: argparse.Namespace) -> list[str]:
    """Return a table of some ways to draw, and of real pictures through the autoencoder."""
    lines = ["| process | sampler | evaluations | KID x1000 | precision | recall | different nearest | ms a picture |"]
    lines.append("|---" * 8 + "|")
    for way in ways:
        rows = [found[key(way, seed, asked)] for seed in asked.seeds]
        cells = [way.family, f"`{way.sampler}`" if way.family == "diffusion" else way.sampler, str(way.evaluations)]
        for name, unit, digits in (("kid", 1, 0), ("precision", 1, 2), ("recall", 1, 2), ("nearest", 1, 2)):
            cells.append(figure([row[name] * unit for row in rows], digits))
        lines.append("| " + " | ".join([*cells, figure([row["seconds"] * 1000 for row in rows], 0)]) + " |")
    real = found[f"real, {asked.pictures}"]
    cells = [f"{real['kid']:.0f}", *(f"{real[name]:.2f}" for name in ("precision", "recall", "nearest")), ""]
    return [*lines, "| " + " | ".join(["real, through the autoencoder", "", "", *cells]) + " |"]


def write(found: Found, data: Latents, asked: argparse.Namespace) -> None:
    """Put the tables and the sheet on the page."""
    fill(PAGE, "latents gan", table(found, FEW, asked))
    fill(PAGE, "latents damped", table(found, DAMPED, asked))
    with torch.no_grad():
        rows = [data.pictures(spread_rows(data.train, SHOWN))]
    rows += [torch.from_numpy(np.load(file_of(way, asked))) for way in ON_SHEET]
    sheet = Image.new("RGB", (SHOWN * (PIXELS + 4) - 4, len(rows) * (PIXELS + 4) - 4), (255, 255, 255))
    for number, row in enumerate(rows):
        for column, picture in enumerate(to_pil(row)):
            sheet.paste(picture, (column * (PIXELS + 4), number * (PIXELS + 4)))
    save_picture(sheet, PAGES / "processes-latents.webp")


def main() -> int:
    """Train and measure what is not done yet, then write the page's tables and sheet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=8, help="processor time of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one training of each process for each")
    parser.add_argument("--pictures", type=int, default=500, help="drawings that are compared with real pictures")
    parser.add_argument("--turn", type=float, help="end after so many minutes by the clock; start again to go on")
    parser.add_argument("--output", type=Path, default=Path("runs/science/latent_processes"))
    asked = parser.parse_args()
    asked.output.mkdir(parents=True, exist_ok=True)
    started, found = time.monotonic(), Found(asked.output / "found.json")

    def check() -> None:
        if asked.turn is not None and time.monotonic() - started > 60 * asked.turn:
            raise TurnIsOver

    with torch.no_grad():
        data = Latents(asked.output)
        if f"real, {asked.pictures}" not in found:
            rows = spread_rows(torch.arange(len(data.train)), asked.pictures)
            found[f"real, {asked.pictures}"] = data.compared(data.pictures(data.train[rows]), rows)
    try:
        for seed in asked.seeds:
            for name in FAMILIES:
                ways = [way for way in (*FEW, *DAMPED) if way.family == name and key(way, seed, asked) not in found]
                if not ways:
                    continue
                training = train(asked, data, name, seed, check)
                found[f"{name}, {seed}, updates"] = training.updates
                for way in ways:
                    judge(asked, data, way, seed, training.family, found)
                    check()
    except TurnIsOver:
        print("the turn is over; start again to go on", file=sys.stderr)
        return 0
    write(found, data, asked)
    return 0


if __name__ == "__main__":
    sys.exit(main())
