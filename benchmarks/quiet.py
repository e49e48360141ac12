"""Whether the processors were ours alone: what else took those that we may use while we measured.

One other process on a core made the same U-Net 5.5 times slower here, and nothing in the times themselves says so.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["OTHERS", "SPREAD", "Load", "Meter", "own_cpu_seconds"]

OTHERS = 0.05  # share of the processors that others may have had
STEAL = 0.02  # share that the host of a virtual machine may have taken
SPREAD = 1.15  # slowest over fastest call
STAT = Path("/proc/stat")
IDLE = (3, 4)  # columns of idle and waiting for disks
STEAL_COLUMN, COUNTED = 7, 8  # those after are counted in the first ones too


@dataclass(frozen=True)
class Load:
    """What happened on the machine in some seconds."""

    seconds: float = 0.0  # of all processors that we may use, together
    ours: float = 0.0  # CPU seconds of the measured process
    busy: float = 0.0  # CPU seconds of all processes on these processors
    steal: float = 0.0  # CPU seconds of them that the host took
    switches: int = 0  # times the measured process was put aside

    def __add__(self, other: "Load") -> "Load":
        return Load(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def others_share(self) -> float:
        """Share of the processors that other processes had; at most 1, though the counts move in steps."""
        return min(1.0, max(0.0, self.busy - self.ours) / self.seconds) if self.seconds else 0.0

    @property
    def steal_share(self) -> float:
        """Share of the processors that the host took; at most 1."""
        return min(1.0, self.steal / self.seconds) if self.seconds else 0.0

    @property
    def disturbed(self) -> str:
        """What disturbed the measurement, or ""."""
        if self.others_share > OTHERS:
            return f"other processes took {self.others_share:.0%} of the processors"
        if self.steal_share > STEAL:
            return f"the host took {self.steal_share:.0%} of the processors"
        return ""


class Meter:
    """Reads the kernel's counts, which move in steps of 10 ms; nothing where there are none (not Linux)."""

    def __init__(self) -> None:
        """Start."""
        self.start, self.before = time.perf_counter(), _processors()

    def stop(self, ours: float, switches: int) -> Load:
        """Return what happened since the start.

        Args:
            ours: CPU seconds that the measured process used.
            switches: how often it was put aside.
        """
        seconds = (time.perf_counter() - self.start) * len(os.sched_getaffinity(0)) if self.before else 0.0
        busy, steal = (b - a for a, b in zip(self.before or (0, 0), _processors() or (0, 0)))
        return Load(seconds, ours, busy, steal, switches)


def own_cpu_seconds() -> tuple[float, int]:
    """Return the CPU seconds of this process with all its threads, and how often one was put aside."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime, used.ru_nivcsw


def _processors() -> tuple[float, float] | None:
    """Return CPU seconds of our processors since the machine's start: of all processes, and stolen by its host."""
    try:
        rows = {name: row for name, *row in map(str.split, STAT.read_text().splitlines()) if name.startswith("cpu")}
        each = [[int(column) for column in rows[f"cpu{k}"]] for k in os.sched_getaffinity(0)]
        steal = sum(columns[STEAL_COLUMN] for columns in each)
    except (OSError, ValueError, LookupError):
        return None
    busy = sum(c for columns in each for i, c in enumerate(columns[:COUNTED]) if i not in (*IDLE, STEAL_COLUMN))
    tick = os.sysconf("SC_CLK_TCK")
    return busy / tick, steal / tick
