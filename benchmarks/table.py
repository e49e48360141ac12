"""A benchmark on the terminal: a table for each piece of work, a line for each tool."""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from benchmarks.plan import Plan
    from benchmarks.report import Row

__all__ = ["Printer"]

WIDTH = 100
LOSSY = "lossy:"  # how the names of such ways begin
COLUMNS = ("s min", "median", "max", "first", "% peak", "rel. error", "GiB", "ready s")
SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


class Printer:
    """Prints the machine, then each piece of work when it is done."""

    def __init__(self, machine: Mapping[str, Any]) -> None:
        """Print what it runs on."""
        terminal = sys.stdout is not None and sys.stdout.isatty()
        self.console = Console(width=None if terminal else WIDTH, highlight=False)
        self.status = Console(stderr=True)
        where = machine.get("gpu") or machine["processor"]
        self.console.print(
            f"{where}, {machine['threads']} threads, {machine['instructions']}; torch {machine['torch']}, "
            f"oneDNN {machine['onednn']}, diffusers {machine['diffusers']}; load {machine['load_average'][0]}"
        )

    @contextmanager
    def telling(self, plan: "Plan") -> Iterator[Callable[[str], None]]:
        """Show what goes on, on a terminal; give what says it."""
        if not self.status.is_terminal:
            yield lambda line: None
            return
        with self.status.status(plan.case) as shown:
            yield lambda line: shown.update(f"{plan.case} {plan.dtype}: {line}")

    def show(self, rows: "Sequence[Row]") -> None:
        """Print the rows of one piece of work; lossy ways in a table of their own."""
        lossy = [row for row in rows if row.tool.startswith(LOSSY)]
        self._table([row for row in rows if row not in lossy], "ours faster by")
        if lossy:
            self._table(lossy, "than exact", "Lossy ways, compared with the exact picture above")

    def _table(self, rows: "Sequence[Row]", last: str, title: str = "") -> None:
        first, plan = rows[0], rows[0].plan
        work = f"{plan.model}, {first.size} px, batch {first.samples}, {plan.dtype}"
        heading = title or f"{first.title}: {work}, {first.gflop:.4g} GFLOP"
        table = Table(title=heading, title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("", no_wrap=True, max_width=24)
        for name in (*COLUMNS, last):
            table.add_column(name, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*_cells(row))
        self.console.print(table)
        for row in rows:
            for line in _remarks(row):
                self.console.print(f"  {row.tool}: {line}", style="dim")


def _cells(row: "Row") -> list[str]:
    name = row.tool.removeprefix(LOSSY)
    if row.skipped:
        return [name, *["-"] * len(COLUMNS), "skipped"]
    times = (min(row.seconds), row.median, max(row.seconds), row.first)
    error = "-" if row.agreement is None else f"{row.agreement.error:.1e}"
    error += "!" if row.lossy and not row.tool.startswith(LOSSY) else ""
    ratio = "" if row.ratio is None else f"{row.ratio.value:.2f} ({row.ratio.low:.2f}-{row.ratio.high:.2f})"
    return [
        f"{name} {SHORT[row.dtype]}",
        *(_seconds(value) for value in times),
        f"{row.percent_of_peak:.0f}",
        error,
        f"{row.peak_gib:.1f}",
        f"{sum(row.ready.values()):.1f}",
        ratio,
    ]


def _remarks(row: "Row") -> list[str]:
    """Return what does not fit into the line."""
    lines = [f"skipped: {row.skipped}"] if row.skipped else []
    if row.contended:
        lines.append(f"contended: {row.contended}")
    if row.lossy and not row.tool.startswith(LOSSY):
        lines.append("lossy: further from diffusers in float32 than its rounding explains")
    if row.agreement is not None and row.agreement.psnr is not None:
        lines.append(f"picture: PSNR {row.agreement.psnr:.1f} dB; latents off by {row.agreement.max_abs:.1e} at most")
    if {"convert", "compile"} & row.ready.keys():
        ready = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in row.ready.items())
        lines.append(f"{ready}; up to {row.ready_gib:.1f} GiB until it was ready")
    if row.split:
        lines.append(", ".join(f"{name} {share:.0%}" for name, share in row.split.items()))
    if row.losses:
        losses = " ".join(f"{loss:.4f}" for loss in row.losses)
        lines.append(f"{row.samples / row.median:.1f} samples/s; losses {losses}")
    if row.goal is not None:
        verdict = "not judged" if row.contended else "missed" if row.failed else "held"
        lines.append(f"committed: ours {row.goal.ratio:g} times as fast; {verdict}")
    return lines


def _seconds(value: float) -> str:
    """Return seconds with three digits."""
    if not math.isfinite(value):
        return "-"
    decimals = 2 if value <= 0 else max(0, 2 - math.floor(math.log10(value)))
    return f"{value:.{decimals}f}"
