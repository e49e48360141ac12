"""Why did diffusion win, and what does it cost? Five families of models side by side: docs/science/families.md.

    python -m experiments.science.five_families [--minutes 8] [--seeds 0] [--pictures 500] [--turn MINUTES]

VAE, hierarchical VAE, GAN, normalising flow and diffusion, of about 1.15 million weights each, learn the same 1,413
icons of 32 px for the same processor time. Then each draws 500 pictures, which are compared with the real ones by
features of EfficientNet-Lite0, and the bits of 74 held-out icons are measured. A run that is stopped goes on where
it was; `--turn` ends it after so many minutes by the clock.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from experiments.science.families.diffusion import Diffusion
from experiments.science.families.family import Draws, Family, spread, to_values
from experiments.science.families.page import write_chart, write_sheet, write_tables
from experiments.science.families.run import (
    FAMILIES,
    OTHER_WAYS,
    SHOWN,
    Run,
    TurnIsOver,
    averaged,
    drawings_key,
    key,
    marks,
    place,
    real_key,
)
from experiments.science.families.training import Training
from latent_diffusion.evaluation.kid import kid
from latent_diffusion.evaluation.recall import precision_and_recall

SEED_OF_DRAWINGS = 1
EARLY = 100  # drawings for KID before the end


def train(run: Run, name: str, seed: int) -> Training:
    """Train a family until its minutes are over, from its checkpoint if there is one."""
    training = Training(FAMILIES[name], run.train, seed)
    for _ in training.go_on(place(run, name, seed), run.asked.minutes, marks(run)[:-1]):
        print(f"{name} {seed}: {training.spent / 60:.1f} min, {training.updates}", file=sys.stderr, flush=True)
        run.check_turn()
    return training


def judge(run: Run, name: str, seed: int, training: Training) -> None:
    """Measure all figures of a trained family that are not measured yet."""
    found, of, progress = run.found, key(run, name, seed), training.progress
    found[f"{of}, training"] = {
        "weights": sum(weight.numel() for weight in training.family.parameters()),
        "updates": training.updates,
        "seconds": progress.seconds[:: max(1, len(progress.seconds) // 60)],
        "losses": {player: smooth(losses, len(losses) // 60) for player, losses in progress.losses.items()},
        "shortened": {player: shortened(lengths) for player, lengths in progress.gradients.items()},
    }
    family = averaged(run, name, seed, run.asked.minutes)
    if f"{of}, bits" not in found:
        found[f"{of}, bits"] = {
            "held out": likelihood(family, run.held_out),
            "train": likelihood(family, run.train[:: len(run.train) // len(run.held_out)][: len(run.held_out)]),
        }
    title = drawings_key(run, name, seed)
    if title not in found:
        found[title] = drawings(run, family, place(run, name, seed) / f"{of}.npy", {})
    run.check_turn()


def judge_further(run: Run, name: str, seed: int) -> None:
    """Measure what else is known of a family: KID on the way, other ways to draw, the likelihood by the ODE."""
    found, of = run.found, key(run, name, seed)
    for minutes in marks(run)[:-1]:
        if f"{name}, {seed}, KID at {minutes:g} min" not in found:
            drawn = to_values(averaged(run, name, seed, minutes).sample(EARLY, SEED_OF_DRAWINGS))
            found[f"{name}, {seed}, KID at {minutes:g} min"] = kid(run.judge(drawn), run.real)
            run.check_turn()
    family = averaged(run, name, seed, run.asked.minutes)
    if isinstance(family, Diffusion) and f"{of}, ODE" not in found:
        x, draws = spread_as_judged(run.held_out)
        parts = [family.bits_by_ode(part, draws) for part in x.split(37)]
        found[f"{of}, ODE"] = torch.cat(parts).tolist()
        run.check_turn()
    for way, options in OTHER_WAYS.get(name, {}).items() if seed == run.asked.seeds[0] else ():
        title = drawings_key(run, way, seed)
        if title not in found:
            file = place(run, name, seed) / f"{key(run, way, seed)}.npy"
            found[title] = drawings(run, family, file, options)
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
    name = real_key(run)
    if name not in run.found:
        real, count = run.real, run.asked.pictures
        among = precision_and_recall(real[:count], real[-count:])
        held_out = kid(run.judge(run.held_out), real)
        halves = kid(real[: len(real) // 2], real[len(real) // 2 :])
        run.found[name] = {"kid": halves, "precision": among.precision, "recall": among.recall, "held out": held_out}


def write(run: Run) -> None:
    """Write the page's tables and figures of all that is measured."""
    write_tables(run)
    write_chart(run)
    write_sheet(run)


def main() -> int:
    """Train and measure what is not done yet, then write the page's tables and figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=8, help="processor time of each family")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one training of each family for each")
    parser.add_argument("--pictures", type=int, default=500, help="drawings that are compared with real pictures")
    parser.add_argument("--turn", type=float, help="end after so many minutes by the clock; start again to go on")
    parser.add_argument("--output", type=Path, default=Path("runs/science/families"))
    run = Run(parser.parse_args())
    try:
        for seed in run.asked.seeds:
            for name in FAMILIES:
                training = train(run, name, seed)
                with torch.no_grad():
                    judge(run, name, seed, training)
        with torch.no_grad():
            reference(run)
            write(run)
            for seed in run.asked.seeds:
                for name in FAMILIES:
                    judge_further(run, name, seed)
    except TurnIsOver:
        print("the turn is over; start again to go on", file=sys.stderr)
        return 0
    finally:
        run.found["minutes"] = run.found.values.get("minutes", 0) + (time.process_time() - run.began) / 60
    write(run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
