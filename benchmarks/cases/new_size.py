"""Two pictures of a size that the process has not drawn before: what the first takes beyond the second."""

from benchmarks.after_change import AfterChange

__all__ = ["NewSize"]

STEP = 64  # px


class NewSize(AfterChange):
    """Every call is for a larger picture than the one before."""

    title = "Two pictures of a new size"

    @property
    def size(self) -> int:
        """Side of the pictures in px."""
        return super().size + STEP * self.changes
