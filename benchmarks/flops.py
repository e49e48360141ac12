"""Operations of a network, counted by running it on shapes alone."""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["count_flops"]


def count_flops(work: Callable[[], object]) -> float:
    """Return the floating point operations of `work`, which runs a plain network on the meta device.

    Matrix products, convolutions and attention; 1 multiply-add = 2. A network with packed weights would hide them.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())
