"""An embedding table with rows of its own behind those of another table, which stays as it is."""

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["GrownTable"]


class GrownTable(nn.Module):
    """Vectors of ids: the first ones from a table, the ids behind them from rows that can be trained alone."""

    def __init__(self, table: nn.Parameter, rows: nn.Parameter) -> None:
        """Take the table (N, D) and the rows (n, D) of the ids N .. N + n - 1, neither copied."""
        super().__init__()
        self.table, self.rows = table, rows

    def forward(self, ids: Tensor) -> Tensor:
        """Return (..., D) of ids (...) int64, 0 .. N + n - 1."""
        known = len(self.table)
        old = F.embedding(ids.clamp(max=known - 1), self.table)
        new = F.embedding((ids - known).clamp(min=0), self.rows)
        return new.where((ids >= known).unsqueeze(-1), old)
