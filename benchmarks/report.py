"""What a benchmark found, row by row, in memory and in a JSON file."""

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.agreement import Agreement
from benchmarks.goals import Goal
from benchmarks.plan import Plan
from benchmarks.race import Lane, Ratio
from latent_diffusion.checkpoint.files.atomic import replacing
from latent_diffusion.errors import ResourceError

__all__ = ["Report", "Row", "row_of"]

FORMAT = 1


@dataclass(frozen=True)
class Row:
    """One tool at one piece of work."""

    plan: Plan
    title: str
    tool: str
    size: int  # px a side
    skipped: str = ""  # why there are no figures
    dtype: str = ""  # what the tool computed in
    seconds: tuple[float, ...] = ()  # of each timed call, in the order of the rounds
    first: float = math.nan  # seconds of the first call
    ready: Mapping[str, float] = field(default_factory=dict)  # seconds of loading, preparing and so on
    ready_gib: float = math.nan  # most memory until it was ready
    peak_gib: float = math.nan  # most memory of the calls
    gflop: float = math.nan  # of a call
    peak: float = math.nan  # GFLOP/s that the machine reached in this dtype, before and after
    peaks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    agreement: Agreement | None = None  # with diffusers in float32; of a lossy way, with our exact result
    lossy: bool = False  # further from the reference than the rule allows
    ratio: Ratio | None = None  # this tool's time over ours; of a lossy way, ours over its
    goal: Goal | None = None
    contended: str = ""  # why the times are doubtful
    load: Mapping[str, float] = field(default_factory=dict)  # shares of others and host, involuntary switches
    samples: int = 1  # pictures of a call
    losses: tuple[float, ...] = ()  # of the first training steps
    split: Mapping[str, float] = field(default_factory=dict)  # shares of a call by what they are for

    @property
    def median(self) -> float:
        """Median seconds of a call."""
        return statistics.median(self.seconds) if self.seconds else math.nan

    @property
    def percent_of_peak(self) -> float:
        """Share of what the machine reached, in percent."""
        return 100 * self.gflop / self.median / self.peak if self.seconds else math.nan

    @property
    def failed(self) -> str:
        """How the committed ratio was missed, or "" where there is none, it was met or the machine was not quiet."""
        if self.goal is None or self.ratio is None or self.contended or not self.goal.missed(self.ratio.value):
            return ""
        return (
            f"{self.plan.case} {self.plan.model} {self.plan.dtype}: {self.ratio.value:.2f} times as fast as "
            f"{self.tool}, committed are {self.goal.ratio:g}"
        )


class Report:
    """All rows of a run, kept in a file as they come."""

    def __init__(self, machine: Mapping[str, Any], started: str, command: str, file: Path | None) -> None:
        """Begin.

        Raises:
            ResourceError: the file is there already or cannot be written.
        """
        self.head = {"format": FORMAT, "started": started, "command": command, "machine": dict(machine)}
        self.file, self.rows = file, list[Row]()
        if file is not None:
            if file.exists():
                raise ResourceError(f"--json {str(file)!r} is there; nothing is overwritten, choose another name")
            self.save()

    def replace(self, rows: list[Row]) -> None:
        """Put rows in, in place of those of the same work, and save."""
        work = {row.plan for row in rows}
        self.rows = [row for row in self.rows if row.plan not in work] + rows
        self.save()

    def save(self) -> None:
        """Write the file, whole."""
        if self.file is None:
            return
        text = json.dumps(self.head | {"rows": [_values(row) for row in self.rows]}, indent=1)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.file) as temporary:
                temporary.write_text(text + "\n")
        except OSError as error:
            raise ResourceError(f"--json {str(self.file)!r} cannot be written: {error.strerror or error}") from error


def _values(row: Row) -> dict[str, Any]:
    values = asdict(row) | {"median": row.median, "percent_of_peak": row.percent_of_peak}
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()
    }


def row_of(lane: Lane, **known: Any) -> Row:
    """Return the row of a lane that has run at least once."""
    assert lane.facts is not None, "only lanes that ran"
    load = lane.load
    return Row(
        tool=lane.tool,
        dtype=lane.facts.dtype,
        seconds=tuple(lane.seconds),
        first=lane.first,
        ready=lane.facts.seconds,
        ready_gib=lane.facts.peak_gib,
        peak_gib=lane.peak_gib,
        contended=lane.contended,
        losses=tuple(lane.made["losses"].tolist()) if "losses" in lane.made else (),
        split={name: seconds / sum(lane.split.values()) for name, seconds in lane.split.items()},
        load={
            "others_share": load.others_share,
            "steal_share": load.steal_share,
            "involuntary_switches": load.switches,
        },
        **known,
    )
