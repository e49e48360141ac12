"""The nearest of many pictures, by the root mean square difference of their pixels."""

import torch
from torch import Tensor

__all__ = ["nearest"]


def nearest(queries: Tensor, searched: Tensor, *, others: bool = False) -> tuple[Tensor, Tensor]:
    """Return distance (Q,) and number (Q,) of the nearest row of `searched` to each row of `queries`.

    Args:
        queries: pictures (Q, P), in any unit.
        searched: pictures (N, P), in the same.
        others: the queries are `searched` itself, and row k is not its own nearest.
    """
    distances, numbers = [], []
    for start in range(0, len(queries), 256):
        part = torch.cdist(queries[start : start + 256], searched)  # (256, N)
        if others:
            rows = torch.arange(len(part))
            part[rows, rows + start] = torch.inf
        distance, number = part.min(dim=1)
        distances.append(distance / queries.shape[1] ** 0.5)
        numbers.append(number)
    return torch.cat(distances), torch.cat(numbers)
