"""Rows to read a model's figures against: what real, degraded, copied and random pictures score on the same prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from latent_diffusion.evaluation.degrade import DEGRADATIONS
from latent_diffusion.evaluation.features import Features
from latent_diffusion.evaluation.gallery import Gallery, features_of
from latent_diffusion.evaluation.kid import kid
from latent_diffusion.evaluation.pictures import Picture
from latent_diffusion.models.efficientnet_lite import EfficientNetLite0
from latent_diffusion.randomness import generator

__all__ = ["ReferenceRow", "reference_rows"]


@dataclass(frozen=True)
class ReferenceRow:
    """One kind of picture given as the answer to every prompt.

    Attributes:
        what: the kind.
        pictures: how many queries (a prompt without such a picture is left out).
        scores: name1, name5, style, joint1, each 0..1.
        kid: 1000 x KID against the real pictures of the prompts, all at 128 px; None for fewer than two.
    """

    what: str
    pictures: int
    scores: dict[str, float]
    kid: float | None


def reference_rows(network: EfficientNetLite0, gallery: Gallery, asked: Sequence[Picture]) -> list[ReferenceRow]:
    """Return the rows for the prompts of `asked`; [] for data without styles and concept families.

    The copy rows answer with the concept's picture in another style, which may not be found itself: else the nearest
    picture would always be the copied one, and joint1 0. Only a model that composes beats them on name and style both.
    """
    retrieval = gallery.retrieval
    if retrieval is None or not asked:
        return []
    real = gallery.features_of(asked)
    number = {picture.file: k for k, picture in enumerate(asked)}

    def row(
        what: str, rows: Sequence[Picture], features: Features, without: Sequence[Picture] | None = None
    ) -> ReferenceRow:
        shares = retrieval.search(features, rows, without).shares()
        prompts = torch.tensor([number[picture.file] for picture in rows])
        distance = kid(features.head, real.head, prompts, torch.arange(len(real))) if len(rows) > 1 else None
        return ReferenceRow(what, len(rows), shares, distance)

    table = [row("the real picture", asked, real)]
    for how in DEGRADATIONS:
        table.append(row(f"real, {how}", asked, features_of(network, gallery.pictures, asked, how=how)))
    for style in retrieval.styles:
        pairs = _copies(gallery.pictures.rows, asked, style)
        if pairs:
            rows, sources = [list(side) for side in zip(*pairs)]
            table.append(row(f"copied from {style}", rows, gallery.features_of(sources), sources))
    random = _same_style(gallery.pictures.rows, asked)
    rows = [asked[k] for k in sorted(random)]
    if rows:
        table.append(row("random, right style", rows, gallery.features_of([random[k] for k in sorted(random)])))
    return table


def _copies(rows: Sequence[Picture], asked: Sequence[Picture], style: str) -> list[tuple[Picture, Picture]]:
    """Return (asked picture, the same concept in `style`) for the prompts of other styles that have one."""
    own = {row.file: row for row in rows if row.style == style}
    by_name = {file.rpartition("/")[2]: row for file, row in own.items()}
    by_family = {row.family: row for row in reversed(own.values())}
    pairs = []
    for picture in asked:
        source = by_name.get(picture.file.rpartition("/")[2]) or by_family.get(picture.family)
        if picture.style != style and source is not None:
            pairs.append((picture, source))
    return pairs


def _same_style(rows: Sequence[Picture], asked: Sequence[Picture]) -> dict[int, Picture]:
    """Return for each prompt's number a training picture of its style and another family, drawn with a fixed key."""
    drawn = {}
    for number, picture in enumerate(asked):
        others = [
            row for row in rows if row.style == picture.style and row.split == "train" and row.family != picture.family
        ]
        if others:
            drawn[number] = others[generator(0, "evaluation random picture", number).integers(len(others))]
    return drawn
