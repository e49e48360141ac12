"""One run of the comparison: its pictures, the judge, the names of its figures, and what was found so far."""

import argparse
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.science.families.diffusion import Diffusion
from experiments.science.families.family import SHAPE, Family, spread, to_values
from experiments.science.families.flow import Flow
from experiments.science.families.gan import GAN
from experiments.science.families.hierarchical_vae import HierarchicalVAE
from experiments.science.families.vae import VAE
from experiments.science.figures import Found
from latent_diffusion.checkpoint.files.safetensors_file import read_tensors, write_tensors
from latent_diffusion.evaluation.features import extract
from latent_diffusion.evaluation.pictures import read_pictures
from latent_diffusion.models.efficientnet_lite import load_efficientnet_lite0

__all__ = [
    "FAMILIES", "OTHER_WAYS", "SHOWN", "STYLE", "Run", "TurnIsOver", "as_images", "averaged", "drawings_key", "key",
    "marks", "place", "real_key",
]  # fmt: skip

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
"""Shares of the minutes after which KID is measured; a run of half the minutes can be continued."""
SHOWN = 10  # pictures in a row of the sheet


class TurnIsOver(Exception):
    """The run has had its minutes and goes on when it is started again."""


class Run:
    """The pictures, the judge's features of them, and what was found so far."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked, self.began, self.turn_began = asked, time.process_time(), time.monotonic()
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
        if self.asked.turn is not None and time.monotonic() - self.turn_began > 60 * self.asked.turn:
            raise TurnIsOver

    @cached_property
    def judge(self) -> Callable[[Tensor], Tensor]:
        """Return a function from values (N, 3, 32, 32) to features (N, 1280)."""
        network = load_efficientnet_lite0()
        return lambda values: extract(network, as_images(values)).head

    @cached_property
    def real(self) -> Tensor:
        """Return the features of the training pictures, in an order that mixes their groups; measured once."""
        kept = self.asked.output / "real.safetensors"
        if not kept.exists():
            order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))
            write_tensors(kept, {"features": self.judge(self.train[order])})
        return read_tensors(kept)["features"]


def as_images(values: Tensor) -> Tensor:
    """Return values 0..31 as images in [-1, 1], the middle of each value's interval."""
    return spread(values.float(), torch.full((), 0.5))


def place(run: Run, name: str, seed: int) -> Path:
    return run.asked.output / f"{name.replace(' ', '-')}-{seed}"


def marks(run: Run) -> list[float]:
    return [share * run.asked.minutes for share in SHARES]


def averaged(run: Run, name: str, seed: int, minutes: float) -> Family:
    """Return a family with the weights that it had after so many minutes."""
    family = FAMILIES[name]()
    weights = read_tensors(place(run, name, seed) / f"average-{minutes:g}.safetensors")
    family.load_state_dict(weights)
    return family.eval()


def key(run: Run, name: str, seed: int) -> str:
    """Return the name of a training among the figures."""
    return f"{name}, {seed}, {run.asked.minutes:g} min"


def drawings_key(run: Run, name: str, seed: int) -> str:
    """Return the name of a training's drawings among the figures: precision and recall depend on their number."""
    return f"{key(run, name, seed)}, {run.asked.pictures} drawings"


def real_key(run: Run) -> str:
    """Return the name of the real pictures' own figures, in place of as many drawings."""
    return f"real, {run.asked.pictures} drawings"
