"""Number of computing threads of a process.

`accelerate launch` and torchrun set OMP_NUM_THREADS=1 for every process, also when one process has the machine to
itself; so we choose: the cores this process may use, divided by the processes that share the machine.
"""

import os

import torch

__all__ = ["choose_threads", "set_threads"]


def choose_threads(local_processes: int = 1, *, wanted: int | None = None) -> int:
    """Return `wanted`, or the cores this process may run on divided by the processes of this machine (at least 1)."""
    if wanted is not None:
        return wanted
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // max(1, local_processes))


def set_threads(count: int) -> None:
    """Let torch compute with `count` threads in this process."""
    torch.set_num_threads(count)
