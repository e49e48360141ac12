"""Why did diffusion win, and what does it cost? Five families of models side by side: docs/science/families.md.

    python -m experiments.science.five_families [--minutes 8] [--seeds 0] [--pictures 500] [--turn MINUTES]

VAE, hierarchical VAE, GAN, normalising flow and diffusion, of about 1.15 million weights each, learn the same 1,413
icons of 32 px for the same processor time. Then each draws 500 pictures, which are compared with the real ones by
features of EfficientNet-Lite0, and is asked how many bits 74 held-out icons have. A run that is stopped goes on where
it was; `--turn` ends it after so many minutes of its own.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from experiments.science.families.diffusion import Diffusion
from experiments.science.families.family import SHAPE, Draws, Family, spread, to_values
from experiments.science.families.flow import Flow
from experiments.science.families.gan import GAN
from experiments.science.families.hierarchical_vae import HierarchicalVAE
from experiments.science.families.training import Training
from experiments.science.families.vae import VAE
from experiments.science.figures import PAGES, Found, chart, fill, save_picture
from latent_diffusion.checkpoint.files.safetensors_file import read_tensors, write_tensors
from latent_diffusion.data.pictures.images import to_pil
from latent_diffusion.evaluation.features import extract
from latent_diffusion.evaluation.kid import kid
from latent_diffusion.evaluation.pictures import read_pictures
from latent_diffusion.evaluation.recall import precision_and_recall
from latent_diffusion.models.efficientnet_lite import load_efficientnet_lite0

PAGE = PAGES / "families.md"
STYLE = "fluent-flat"
FAMILIES: dict[str, Callable[[], Family]] = {
    "VAE": VAE,
    "hierarchical VAE": HierarchicalVAE,
    "GAN": GAN,
    "flow": Flow,
    "diffusion": Diffusion,
}
OTHER_WAYS: dict[str, dict[str, dict[str, Any]]] = {
    "flow": {"flow, temperature 0.7": {"temperature": 0.7}},
    "diffusion": {f"diffusion, {steps} evaluations": {"steps": steps} for steps in (5, 10, 50)},
}
"""Other ways to draw from the first seed's model."""
SHARES = (0.125, 0.25, 0.5, 1.0)
"""Shares of the minutes after which KID is measured."""
SEED_OF_DRAWINGS = 1
SHOWN = 14  # pictures in a row of the sheet


class TurnIsOver(Exception):
    """The run has had its minutes and goes on when it is started again."""


class Run:
    """The pictures, the judge's features of them, and what was found so far."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked, self.began = asked, time.process_time()
        self.found = Found(asked.output / "found.json")
        opened = read_pictures("assets/emoji-128.zip")
        rows = [row for row in opened.rows if row.style == STYLE]
        split = {
            name: [row for row in rows if (row.split == "train") == (name == "train")] for name in ("train", "held")
        }
        self.train = to_values(opened.load(split["train"], SHAPE[1]))
        self.held_out = to_values(opened.load(split["held"], SHAPE[1]))

    def check_turn(self) -> None:
        """End the run when its minutes are over."""
        if self.asked.turn is not None and time.process_time() - self.began > 60 * self.asked.turn:
            raise TurnIsOver

    @cached_property
    def judge(self) -> Callable[[Tensor], Tensor]:
        """Return a function from values (N, 3, 32, 32) to features (N, 1280)."""
        network = load_efficientnet_lite0()
        return lambda values: extract(network, as_images(values)).head

    @cached_property
    def real(self) -> Tensor:
        """Return the features of the training pictures, in an order that mixes their groups."""
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))
        return self.judge(self.train[order])


def as_images(values: Tensor) -> Tensor:
    """Return values 0..31 as images in [-1, 1], the middle of each value's interval."""
    return spread(values.float(), torch.full((), 0.5))


def place(run: Run, name: str, seed: int) -> Path:
    return run.asked.output / f"{name.replace(' ', '-')}-{seed}"


def train(run: Run, name: str, seed: int) -> Training:
    """Train a family until its minutes are over, from its checkpoint if there is one."""
    folder, budget = place(run, name, seed), 60 * run.asked.minutes
    training = Training(FAMILIES[name], run.train, seed)
    checkpoint = folder / "checkpoint.safetensors"
    if checkpoint.exists():
        training.load(checkpoint)
    saved = training.spent
    while training.spent < budget:
        before = training.spent
        training.update()
        passed = [share for share in SHARES if before < share * budget <= training.spent]
        for share in passed:
            folder.mkdir(parents=True, exist_ok=True)
            write_tensors(folder / f"average-{share}.safetensors", training.average)
        if passed or training.spent - saved > 30:
            training.save(checkpoint)
            saved = training.spent
            print(f"{name} {seed}: {saved / 60:.1f} min, {training.updates}", file=sys.stderr, flush=True)
            run.check_turn()
    return training


def judge(run: Run, name: str, seed: int, training: Training) -> None:
    """Measure all figures of a trained family that are not measured yet."""
    found, key = run.found, f"{name}, {seed}"
    progress = training.progress
    found[f"{key}, training"] = {
        "weights": sum(weight.numel() for weight in training.family.parameters()),
        "updates": training.updates,
        "seconds": progress.seconds[:: max(1, len(progress.seconds) // 60)],
        "losses": {player: smooth(losses, len(losses) // 60) for player, losses in progress.losses.items()},
        "shortened": {player: shortened(lengths) for player, lengths in progress.gradients.items()},
    }
    for share in SHARES[:-1]:
        if f"{key}, KID at {share}" not in found:
            weights = read_tensors(place(run, name, seed) / f"average-{share}.safetensors")
            training.average = {part: weights[part] for part in training.average}
            drawn = to_values(training.averaged().sample(run.asked.pictures // 2, SEED_OF_DRAWINGS))
            found[f"{key}, KID at {share}"] = kid(run.judge(drawn), run.real)
            run.check_turn()
    weights = read_tensors(place(run, name, seed) / f"average-{SHARES[-1]}.safetensors")
    training.average = {part: weights[part] for part in training.average}
    family = training.averaged()
    if f"{key}, bits" not in found:
        found[f"{key}, bits"] = {
            "held out": likelihood(family, run.held_out),
            "train": likelihood(family, run.train[:: len(run.train) // len(run.held_out)][: len(run.held_out)]),
        }
    if isinstance(family, Diffusion) and f"{key}, ODE" not in found:
        x, draws = spread_as_judged(run.held_out)
        parts = [family.bits_by_ode(part, draws) for part in x.split(37)]
        found[f"{key}, ODE"] = torch.cat(parts).tolist()
        run.check_turn()
    ways = {name: {}} | (OTHER_WAYS.get(name, {}) if seed == run.asked.seeds[0] else {})
    for way, options in ways.items():
        if f"{way}, {seed}, drawings" not in found:
            found[f"{way}, {seed}, drawings"] = drawings(run, family, place(run, name, seed) / f"{way}.npy", options)
            run.check_turn()


def smooth(values: Sequence[float], width: int) -> list[float]:
    """Return means of `width` values in a row."""
    width = max(1, width)
    return [float(np.mean(values[start : start + width])) for start in range(0, len(values) - width + 1, width)]


def shortened(lengths: Sequence[float]) -> float:
    """Return the share of the updates with a gradient longer than three times the median of the 50 before."""
    long = [lengths[k] > 3 * np.median(lengths[max(0, k - 50) : k]) for k in range(10, len(lengths))]
    return float(np.mean(long))


def spread_as_judged(values: Tensor) -> tuple[Tensor, Draws]:
    """Return values spread by the noise that every family is judged with, and the draws of the judgement."""
    draws = Draws(0, 0, 0)
    return spread(values.float(), draws.uniform("spread for judging", values.float())), draws


def likelihood(family: Family, values: Tensor) -> list[float] | None:
    """Return the bits a number of each picture; None = the family has no likelihood."""
    x, _ = spread_as_judged(values)
    bounds = [family.bits_per_dimension(x, Draws(k, 0, 0)) for k in range(family.draws_of_bits)]
    known = [bound for bound in bounds if bound is not None]
    return torch.stack(known).mean(0).tolist() if known else None


def drawings(run: Run, family: Family, file: Path, options: dict[str, Any]) -> dict[str, float]:
    """Draw pictures, keep the first, and compare all with the real ones."""
    count = run.asked.pictures
    began = time.process_time()
    drawn = family.sample(count, SEED_OF_DRAWINGS, **options)
    seconds = (time.process_time() - began) / count
    counter = FlopCounterMode(display=False)
    with counter:
        family.sample(1, SEED_OF_DRAWINGS, **options)
    values = to_values(drawn)
    np.save(file, values[: 4 * SHOWN].numpy())
    return compared(run, run.judge(values)) | {
        "seconds": seconds,
        "operations": counter.get_total_flops() / 1e9,
    }


def compared(run: Run, features: Tensor) -> dict[str, float]:
    """Return KID to all real pictures, and precision and recall beside as many of them as there are drawings."""
    among = precision_and_recall(run.real[: len(features)], features)
    return {"kid": kid(features, run.real), "precision": among.precision, "recall": among.recall}


def reference(run: Run) -> None:
    """Measure what a perfect model would have: one half of the real pictures beside the other, in place of drawings."""
    if "real" not in run.found:
        real, count = run.real, run.asked.pictures
        among = precision_and_recall(real[:count], real[-count:])
        held_out = kid(run.judge(run.held_out), real)
        halves = kid(real[: len(real) // 2], real[len(real) // 2 :])
        run.found["real"] = {"kid": halves, "precision": among.precision, "recall": among.recall, "held out": held_out}


def write_table(run: Run) -> None:
    """Put the tables on the page."""
    found, seeds = run.found, run.asked.seeds
    lines = [
        "| family | weights, M | updates | held out, bits | trained on, bits | KID x1000 | precision | recall | "
        "G multiply-adds a picture | ms a picture |",
        "|---" * 10 + "|",
    ]
    for name in FAMILIES:
        training = found[f"{name}, {seeds[0]}, training"]
        updates = [found[f"{name}, {seed}, training"]["updates"] for seed in seeds]
        cells = [name, f"{training['weights'] / 1e6:.2f}", figure(updates, 0)]
        bits = [found[f"{name}, {seed}, bits"] for seed in seeds]
        exact = "" if name == "flow" else "≤ "
        for kind in ("held out", "train"):
            cells.append("none" if name == "GAN" else exact + figure([float(np.mean(one[kind])) for one in bits], 2))
        lines.append(row([*cells, *drawn_cells([found[f"{name}, {seed}, drawings"] for seed in seeds])]))
    for way in (way for ways in OTHER_WAYS.values() for way in ways):
        lines.append(row([way, "", "", "", "", *drawn_cells([found[f"{way}, {seeds[0]}, drawings"]])]))
    real = found["real"]
    cells = ["real pictures", "", "", "", "", f"{real['kid']:.0f}", f"{real['precision']:.2f}", f"{real['recall']:.2f}"]
    fill(PAGE, "families", [*lines, row([*cells, "", ""])])
    ode = [float(np.mean(found[f"diffusion, {seed}, ODE"])) for seed in seeds]
    fill(PAGE, "ode", [f"Diffusion by the ODE: {figure(ode, 2)} bits for each number of the held-out pictures."])
    lines = ["| player | loss in the first eighth | last eighth | spread in the last eighth | long gradients |"]
    lines.append("|---" * 5 + "|")
    for name in FAMILIES:
        training = found[f"{name}, {seeds[0]}, training"]
        for player, losses in training["losses"].items():
            eighth = max(1, len(losses) // 8)
            ends = np.mean(losses[:eighth]), np.mean(losses[-eighth:]), np.std(losses[-eighth:])
            title = name if player == "model" else f"{name}: {player}"
            lines.append(row([title, *(f"{one:.3f}" for one in ends), f"{training['shortened'][player]:.3f}"]))
    fill(PAGE, "training", lines)


def row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def figure(values: Sequence[float], digits: int) -> str:
    """Return the mean, and the spread where there are several."""
    text = f"{np.mean(values):,.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {np.std(values, ddof=1):,.{digits}f}"


def drawn_cells(drawn: Sequence[dict[str, float]]) -> list[str]:
    places = {"kid": (1, 0), "precision": (1, 2), "recall": (1, 2), "operations": (0.5, 3), "seconds": (1000, 1)}
    return [figure([one[name] * unit for one in drawn], digits) for name, (unit, digits) in places.items()]


def write_chart(run: Run) -> None:
    """Put KID and losses against minutes on the page."""
    found, seed, minutes = run.found, run.asked.seeds[0], run.asked.minutes
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {
        "EffLite-KID x1000": {
            name: [
                *((share * minutes, found[f"{name}, {seed}, KID at {share}"]) for share in SHARES[:-1]),
                (minutes, found[f"{name}, {seed}, drawings"]["kid"]),
            ]
            for name in FAMILIES
        }
    }
    titles = {"VAE": "loss: bits a number", "diffusion": "loss: square error of v", "GAN": "losses of the game"}
    titles |= dict.fromkeys(("hierarchical VAE", "flow"), titles["VAE"])
    for name in ("VAE", "hierarchical VAE", "flow", "diffusion", "GAN"):
        training = found[f"{name}, {seed}, training"]
        for player, losses in training["losses"].items():
            times = np.linspace(training["seconds"][0], training["seconds"][-1], len(losses)) / 60
            points = [(round(float(t), 2), y) for t, y in zip(times, losses, strict=True)][2:]
            title = "GAN's critic" if player == "critic" else name
            panels.setdefault(titles[name], {})[title] = points
    (PAGES / "families.svg").write_text(chart(panels, "processor minutes"))


def write_sheet(run: Run) -> None:
    """Put the first drawings of each family on the page, real pictures above."""
    held = run.held_out
    rows = {"real, held out": held[:: max(1, len(held) // SHOWN)][:SHOWN]}
    for name in FAMILIES:
        folder = place(run, name, run.asked.seeds[0])
        rows[name] = torch.from_numpy(np.load(folder / f"{name}.npy")[:SHOWN])
    cell, gap, label = 64, 4, 104
    sheet = Image.new("RGB", (label + SHOWN * (cell + gap), len(rows) * (cell + gap) + gap), (255, 255, 255))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, (name, values) in enumerate(rows.items()):
        y = gap + number * (cell + gap)
        draw.text((4, y + cell // 2 - 8), name, fill=(40, 40, 40), font=font)
        for column, picture in enumerate(to_pil(as_images(values))):
            sheet.paste(picture.resize((cell, cell), Image.Resampling.BICUBIC), (label + column * (cell + gap), y))
    save_picture(sheet, PAGES / "families.webp")


def main() -> int:
    """Train and measure what is not done yet, then write the page's tables and figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=8, help="processor time of each family")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one training of each family for each")
    parser.add_argument("--pictures", type=int, default=500, help="drawings that are compared with real pictures")
    parser.add_argument("--turn", type=float, help="end after so many processor minutes; start again to go on")
    parser.add_argument("--output", type=Path, default=Path("runs/science/families"))
    run = Run(parser.parse_args())
    try:
        for seed in run.asked.seeds:
            for name in FAMILIES:
                training = train(run, name, seed)
                with torch.no_grad():
                    judge(run, name, seed, training)
        reference(run)
    except TurnIsOver:
        print("the turn is over; start again to go on", file=sys.stderr)
        return 0
    finally:
        run.found["minutes"] = run.found.values.get("minutes", 0) + (time.process_time() - run.began) / 60
    write_table(run)
    write_chart(run)
    write_sheet(run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
