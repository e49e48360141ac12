"""Everything measured once on the real pictures, before any model is judged."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from latent_diffusion.evaluation.degrade import DEGRADATIONS, degrade
from latent_diffusion.evaluation.features import SIZE, Features, extract
from latent_diffusion.evaluation.pictures import Picture, RealPictures
from latent_diffusion.evaluation.retrieval import Retrieval
from latent_diffusion.models.efficientnet_lite import EfficientNetLite0
from latent_diffusion.randomness import permutation

__all__ = ["COPIES", "Gallery", "Progress", "build_gallery", "features_of", "ignore_progress"]

COPIES = 1500
"""Degraded training pictures that the style rule is fitted on beside the real ones."""

Progress = Callable[[str, int, int], None]
"""Called with (what, pictures done, pictures in all)."""


def ignore_progress(what: str, done: int, total: int) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Gallery:
    """The real pictures, their features (in the order of `pictures.rows`) and the search among them.

    `retrieval` is None for data without styles and concept families.
    """

    pictures: RealPictures
    features: Features
    retrieval: Retrieval | None

    def features_of(self, rows: Sequence[Picture]) -> Features:
        """Return the features of some of the real pictures, judged at 128 px."""
        number = {row.file: k for k, row in enumerate(self.pictures.rows)}
        return self.features[[number[row.file] for row in rows]]


def features_of(
    network: EfficientNetLite0,
    pictures: RealPictures,
    rows: Sequence[Picture],
    how: str | None = None,
    progress: Progress = ignore_progress,
) -> Features:
    """Return the features of real pictures and, with `how`, of degraded ones."""
    parts, done = [], 0
    for images in pictures.batches(rows, SIZE):
        images = images if how is None else degrade(images, how, seed=done)
        parts.append(extract(network, images))
        done += len(images)
        progress(f"real pictures{f', {how}' if how else ''}", done, len(rows))
    return Features.cat(parts)


def build_gallery(network: EfficientNetLite0, pictures: RealPictures, progress: Progress = ignore_progress) -> Gallery:
    """Measure all real pictures and fit the search on them; about 9 ms a picture on one CPU core."""
    features = features_of(network, pictures, pictures.rows, progress=progress)
    train = [row for row in pictures.rows if row.split == "train"]
    untaught = {row.style for row in pictures.rows} - {row.style for row in train}
    if not pictures.has_concepts or untaught or len(train) < 2:
        return Gallery(pictures, features, None)
    order = torch.from_numpy(permutation(0, "evaluation copies", 0, len(train)))[:COPIES]
    shares = [[train[k] for k in part.tolist()] for part in order.tensor_split(len(DEGRADATIONS))]
    degraded = [(rows, how) for rows, how in zip(shares, DEGRADATIONS) if rows]
    copies = Features.cat(features_of(network, pictures, rows, how=how, progress=progress) for rows, how in degraded)
    styles = [row.style for rows, _ in degraded for row in rows]
    return Gallery(pictures, features, Retrieval(pictures.rows, features, copies, styles))
