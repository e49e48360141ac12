"""A benchmark on the terminal: a table for each piece of work, a line for each tool."""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from latent_diffusion.benchmark.plan import Plan
    from latent_diffusion.benchmark.report import Row

__all__ = ["Printer"]

WIDTH = 100
COLUMNS = ("s min", "median", "max", "first", "% peak", "rel. error", "GiB", "ready s", "ours faster by")
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
        """Print the rows of one piece of work."""
        first, plan = rows[0], rows[0].plan
        work = f"{plan.model}, {first.size} px, batch {first.samples}, {plan.dtype}"
        title = f"{first.title}: {work}, {first.gflop:.4g} GFLOP"
        table = Table(title=title, title_justify="left", padding=(0, 1, 0, 0), box=None)
        table.add_column("", no_wrap=True)
        for name in COLUMNS:
            table.add_column(name, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*_cells(row))
        self.console.print(table)
        for row in rows:
            for line in _remarks(row):
                self.console.print(f"  {row.tool}: {line}", style="dim")


def _cells(row: "Row") -> list[str]:
    if row.skipped:
        return [row.tool, *["-"] * (len(COLUMNS) - 1), "skipped"]
    name = f"{row.tool} {SHORT[row.dtype]}"
    times = (min(row.seconds), row.median, max(row.seconds), row.first)
    error = "-" if row.agreement is None else f"{row.agreement.error:.1e}" + (" lossy" if row.lossy else "")
    ratio = "" if row.ratio is None else f"{row.ratio.value:.2f} ({row.ratio.low:.2f}-{row.ratio.high:.2f})"
    flag = "contended" if row.contended and not ratio else ratio + ("!" if row.contended else "")
    return [
        name,
        *(_seconds(value) for value in times),
        f"{row.percent_of_peak:.0f}",
        error,
        f"{row.peak_gib:.1f}",
        f"{sum(row.ready.values()):.1f}",
        flag,
    ]


def _remarks(row: "Row") -> list[str]:
    lines = [row.skipped] if row.skipped else []
    if row.contended:
        lines.append(f"contended: {row.contended}")
    if row.agreement is not None and row.agreement.psnr is not None:
        lines.append(f"PSNR of the picture {row.agreement.psnr:.1f} dB")
    if row.losses:
        split = ", ".join(f"{name} {share:.0%}" for name, share in row.split.items())
        losses = " ".join(f"{loss:.5f}" for loss in row.losses)
        lines.append(f"{row.samples / row.median:.1f} samples/s; {split}; first losses {losses}")
    return lines


def _seconds(value: float) -> str:
    """Return seconds with three digits."""
    if not math.isfinite(value):
        return "-"
    return (
        f"{value:.{max(0, 2 - math.floor(math.log10(value))) if value > 0 else 2}f}" if value < 100 else f"{value:.0f}"
    )
