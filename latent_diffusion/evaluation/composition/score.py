"""The composition test of a model: its drawings of combinations never trained on, judged by measurement."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from latent_diffusion.checks import MAX_SEED
from latent_diffusion.data.composed.stock import Stock
from latent_diffusion.data.pictures.images import to_pil
from latent_diffusion.data.settings import ComposedConfig, ReadingConfig
from latent_diffusion.data.sources.imagefolder import FolderSource
from latent_diffusion.errors import ConfigError, DataError
from latent_diffusion.evaluation.composition.judge import Judge
from latent_diffusion.evaluation.composition.prompts import KINDS, Asked, answer
from latent_diffusion.evaluation.evaluate import Examined
from latent_diffusion.evaluation.features import Features
from latent_diffusion.evaluation.gallery import Progress, features_of, ignore_progress
from latent_diffusion.evaluation.grid import Column, draw_grid
from latent_diffusion.evaluation.pictures import Picture, RealPictures
from latent_diffusion.evaluation.retrieval import Retrieval
from latent_diffusion.models.efficientnet_lite import EfficientNetLite0

__all__ = ["CompositionReport", "KindScore", "make_judge", "score_composition"]

ON_SHEET = 12
"""Drawings of each kind on the sheet."""


@dataclass(frozen=True)
class KindScore:
    """The shares of pictures of one kind, 0..1: `right` by its measure, `named` the thing that is asked, `both`."""

    kind: str
    pictures: int
    right: float
    named: float
    both: float


@dataclass(frozen=True)
class CompositionReport:
    """Scores of the drawings and of the same scenes composed of real pictures, and a sheet of drawings to look at."""

    model: str
    drawn: list[KindScore]
    real: list[KindScore]
    sheet: Image.Image


def make_judge(
    network: EfficientNetLite0, pictures: RealPictures, rows: Sequence[Picture], progress: Progress = ignore_progress
) -> Judge:
    """Return the judge that searches things among these real pictures.

    Raises:
        DataError: they have no styles and concept families.
    """
    if not rows or not all(row.style and row.family for row in rows):
        raise DataError(f"{pictures.where}: the composition test needs rows with `style` and `family`")
    features = features_of(network, pictures, rows, progress=progress)
    real: dict[str, dict[str, Picture]] = {}
    for row in rows:
        if row.split == "train":
            real.setdefault(str(row.table.get("name", "")), {}).setdefault(row.style, row)
    none: Features = features[[]]
    return Judge(network, Retrieval(rows, features, none, []), real)


def score_composition(
    model: Examined,
    asked: Sequence[Asked],
    judge: Judge,
    data: str,
    *,
    seed: int = 0,
    batch_size: int = 16,
    progress: Progress = ignore_progress,
) -> CompositionReport:
    """Draw one picture for every prompt and judge it; picture k has the seed `seed` + k.

    Args:
        model: to examine.
        asked: the prompts.
        judge: of the pictures.
        data: the data set from whose pictures the same scenes are composed, as a reference.
        seed: of the first picture.
        batch_size: pictures drawn at a time.
        progress: called with what is done.

    Raises:
        ConfigError: the data set has none of the things.
    """
    drawn: list[Tensor] = []
    for start in range(0, len(asked), batch_size):
        batch = asked[start : start + batch_size]
        seeds = [(seed + start + k) % (MAX_SEED + 1) for k in range(len(batch))]
        drawn.extend(model.generate([one.prompt for one in batch], seeds).float().clamp(-1, 1).cpu())
        progress("drawing", start + len(batch), len(asked))
    composed = _answers(asked, data, model.size)
    return CompositionReport(
        model.name,
        _judged(judge, list(zip(asked, drawn, strict=True))),
        _judged(judge, composed),
        _sheet(asked, drawn, dict(composed)),
    )


def _answers(asked: Sequence[Asked], data: str, size: int) -> list[tuple[Asked, Tensor]]:
    """Return the prompts that real pictures can answer, and the answers (3, size, size) in [-1, 1]."""
    source = FolderSource.open(data, ReadingConfig())
    train = np.array([k for k in range(len(source)) if source.row(k).get("split", "train") == "train"])
    stock = Stock(source, train, ComposedConfig(), size)
    openings: dict[str, str] = {}
    for k, opening in stock.opening.items():
        openings.setdefault(str(source.row(k).get("style", "")), opening)
    usual = openings[next(one.style for one in asked if one.style in openings)] if openings else ""
    answers = ((one, answer(one, stock, size, openings.get(one.style, usual))) for one in asked)
    found = [(one, image) for one, image in answers if image is not None]
    if not found:
        raise ConfigError(f"{data}: has none of the things that the composition test asks for")
    return found


def _judged(judge: Judge, pictures: Sequence[tuple[Asked, Tensor]]) -> list[KindScore]:
    scores = []
    for kind in KINDS:
        shown = [judge.shows(one, image) for one, image in pictures if one.kind == kind]
        if shown:
            right, named = (torch.tensor([one[key] for one in shown]) for key in ("right", "named"))
            shares = [float(part.float().mean()) for part in (right, named, right & named)]
            scores.append(KindScore(kind, len(shown), *shares))
    return scores


def _sheet(asked: Sequence[Asked], drawn: Sequence[Tensor], composed: Mapping[Asked, Tensor]) -> Image.Image:
    """Return the first drawings of each kind, each under the scene composed of real pictures."""
    columns = []
    for kind in KINDS:
        for k in [k for k, one in enumerate(asked) if one.kind == kind][:ON_SHEET]:
            real = composed.get(asked[k])
            pictures = [drawn[k]] if real is None else [drawn[k], real]
            images = to_pil(torch.stack(pictures))
            columns.append(Column(asked[k].prompt, images[1] if real is not None else None, images[:1]))
    return draw_grid(columns, per_row=ON_SHEET)
