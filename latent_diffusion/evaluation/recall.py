"""Precision and recall of drawings: are they among the real pictures, and are the real pictures among them?

A set of pictures stands for all points within a ball around each of its members, whose radius is the distance to the
member's k-th nearest neighbour in the set. Precision is the share of drawings within the balls of the real pictures;
recall is the share of real pictures within the balls of the drawings, so it falls where a model draws only a part of
the data (its mode collapses).

Reference: Kynkäänniemi et al. 2019, "Improved precision and recall metric", arXiv:1904.06991, equations (1) and (2).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from latent_diffusion.errors import DataError

__all__ = ["PrecisionRecall", "precision_and_recall"]

NEIGHBOURS = 3
"""k, the paper's choice."""


class PrecisionRecall(NamedTuple):
    """Shares, 0..1: drawings that lie among the real pictures, real pictures that lie among the drawings."""

    precision: float
    recall: float


def precision_and_recall(real: Tensor, drawn: Tensor, neighbours: int = NEIGHBOURS) -> PrecisionRecall:
    """Return precision and recall of the feature sets `real` (N, d) and `drawn` (M, d).

    Both figures grow and fall with the sizes of the sets, so compare only sets of one size.

    Args:
        real: features of real pictures.
        drawn: features of drawings.
        neighbours: k; the radius around a picture is the distance to its k-th nearest in its own set.

    Raises:
        DataError: a set has no more than `neighbours` pictures.
    """
    if min(len(real), len(drawn)) <= neighbours:
        raise DataError(
            f"recall with {neighbours} neighbours needs at least {neighbours + 1} pictures on each side, found "
            f"{len(real)} and {len(drawn)}"
        )
    real, drawn = real.double(), drawn.double()
    return PrecisionRecall(_share_within(drawn, real, neighbours), _share_within(real, drawn, neighbours))


def _share_within(asked: Tensor, members: Tensor, neighbours: int) -> float:
    """Return the share of the rows of `asked` that lie in the ball of at least one of `members`."""
    own = torch.cdist(members, members).fill_diagonal_(0.0)
    radius = own.kthvalue(neighbours + 1, dim=1).values  # the nearest of all is the member itself
    return float((torch.cdist(asked, members) <= radius).any(1).double().mean())
