"""The first picture of a process that finds nothing prepared: no compiled kernel, no packed weight, no recording."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from benchmarks.cases.generate import Generate
from benchmarks.plan import Ready

__all__ = ["FirstPicture"]

CACHES = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")


class FirstPicture(Generate):
    """The first call is a whole picture (column "first"); the timed ones are what every later picture takes."""

    title = "First picture of a process"

    def build(self, tool: str) -> Ready:
        """Return a pipeline whose kernels are yet to be compiled."""
        empty = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, empty, ignore_errors=True)
        os.environ.update(dict.fromkeys(CACHES, empty))
        return super().build(tool)

    def _ready(
        self, draw: Callable[[int], Mapping[str, Tensor]], dtype: torch.dtype, seconds: dict[str, float]
    ) -> Ready:
        return Ready(lambda: draw(self.plan.steps), dtype, seconds)
