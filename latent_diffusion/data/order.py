"""The order in which a run goes through its pictures: sample n -> row, as a pure function of (seed, n).

A pass shows every picture as often as its weight says, in a new order, and every number of processes that shares out
the numbers of one global batch sees the same. With buckets the numbers of a pass are cut into batches of one bucket
each; the last batch of a bucket is smaller, so some of its numbers have no picture (row -1). Nothing is shown twice
to fill a batch, and nothing is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from latent_diffusion.randomness import permutation

__all__ = ["Group", "Order"]

EMPTY = -1


@dataclass(frozen=True)
class Group:
    """Rows that are shown equally often and, with buckets, have one size.

    Attributes:
        rows: indices in the data set, (n,) int64.
        weight: how often a pass shows each; below 1 a pass shows `ceil(weight n)` of them, the next pass goes on.
        bucket: index of their bucket.
    """

    rows: np.ndarray
    weight: float = 1.0
    bucket: int = 0

    @property
    def count(self) -> int:
        """Samples of a pass."""
        return int(np.ceil(self.weight * len(self.rows) - 1e-9))


class Order:
    """The rows of every pass.

    Args:
        seed: of the run.
        groups: all rows, each in one group.
        batch: pictures of a batch over all processes, where a batch must have one bucket; None: no buckets.
    """

    def __init__(self, seed: int, groups: Sequence[Group], batch: int | None = None) -> None:
        self.seed, self.groups, self.batch = seed, tuple(groups), batch
        self.pictures = sum(group.count for group in groups)
        if batch is None:
            self.length = self.pictures
        else:
            self.length = sum(-(-count // batch) * batch for count in self.counts().values())
        self._rows = lru_cache(maxsize=2)(self._order_pass)

    def counts(self) -> dict[int, int]:
        """Return the samples of a pass in each bucket."""
        found: dict[int, int] = {}
        for group in self.groups:
            found[group.bucket] = found.get(group.bucket, 0) + group.count
        return found

    def row(self, number: int) -> int:
        """Return the row of sample `number`; -1 where a smaller last batch has no picture."""
        turn, place = divmod(number, self.length)
        return int(self._rows(turn)[place])

    def first_of_batch(self, number: int) -> int:
        """Return the first sample number of the batch that `number` is in; it always has a picture."""
        return number if self.batch is None else number // self.batch * self.batch

    def _order_pass(self, turn: int) -> np.ndarray:
        """Return the rows of one pass, (length,) int64."""
        if self.batch is None:
            rows = np.concatenate([self._shown(k, turn) for k in range(len(self.groups))])
            return rows[permutation(self.seed, "order", turn, len(rows))]
        batches: list[np.ndarray] = []
        for bucket in self.counts():
            shown = [self._shown(k, turn) for k, group in enumerate(self.groups) if group.bucket == bucket]
            rows = np.concatenate(shown)
            rows = rows[permutation(self.seed, f"order {bucket}", turn, len(rows))]
            rows = np.concatenate([rows, np.full(-len(rows) % self.batch, EMPTY)])
            batches.extend(rows.reshape(-1, self.batch))
        return np.stack(batches)[permutation(self.seed, "batches", turn, len(batches))].reshape(-1)

    def _shown(self, k: int, turn: int) -> np.ndarray:
        """Return the rows of group k that pass `turn` shows; the group's own rounds go on from pass to pass."""
        group, count = self.groups[k], self.groups[k].count
        rounds, places = np.divmod(np.arange(turn * count, (turn + 1) * count), len(group.rows))
        if count % len(group.rows) == 0:
            return group.rows[places]
        parts = []
        for number in np.unique(rounds):
            shuffled = group.rows[permutation(self.seed, f"group {k}", int(number), len(group.rows))]
            parts.append(shuffled[places[rounds == number]])
        return np.concatenate(parts)
