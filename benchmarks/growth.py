"""How time and memory grow with the size of a picture and with their number, beside another tool.

    python -m benchmarks.growth --json growth.jsonl [--minutes 30]      # the same command continues
    python -m benchmarks.growth --json growth.jsonl --minutes 0 --write # the table and the curves into the docs

Each cell is a race of two processes with the same weights, in turn; memory is each process's own peak of the calls.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.case import OURS
from benchmarks.cells import Figures, shown
from benchmarks.command import command
from benchmarks.curves import Panel, drawing
from benchmarks.facts import machine_facts
from benchmarks.plan import Plan
from benchmarks.race import race, ratio
from latent_diffusion.errors import ResourceError

__all__ = ["growth", "main", "measure"]

ROOT = Path(__file__).parents[1]
PAGE, CURVES = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "growth.svg"
BEGIN, END = "<!-- growth: made by benchmarks/growth.py -->", "<!-- end of growth -->"
SIZES, BATCHES = (256, 512, 768, 1024, 1280, 1536), (1, 2, 4, 8)
ROUNDS = 2  # timed calls of each; the largest take minutes
COLUMNS = ("px", "pictures", "{0}, s", "ours, s", "times as fast", "{0}, GiB", "ours, GiB", "disturbed")


def measure(plan: Plan, peer: str) -> Figures:
    """Race one cell, and return seconds and memory of both.

    Raises:
        ResourceError: our own side cannot run.
    """
    ours, theirs = list(race(plan, (OURS, peer), ROUNDS))[-1]
    if ours.absent:
        raise ResourceError(f"{plan.case} at {plan.size} px, batch {plan.batch}: {ours.absent}")
    found = {"ours": ours.median, "ours_gib": ours.peak_gib, "disturbed": ours.contended, "absent": theirs.absent}
    if theirs.absent:
        return found
    faster = ratio(theirs.seconds, ours.seconds)
    disturbed = ours.contended or theirs.contended
    return found | {
        "theirs": theirs.median,
        "theirs_gib": theirs.peak_gib,
        "ratio": faster.value,
        "disturbed": disturbed,
    }


def growth(
    case: Annotated[str, typer.Argument(metavar="CASE", help="unet-step or vae-decode.")] = "unet-step",
    model: Annotated[str, typer.Option("--model", "-m", help="A family, emoji, or a model's folder.")] = "sd1",
    peer: Annotated[str, typer.Option(help="The tool beside ours.")] = "diffusers",
    dtype: Annotated[str, typer.Option(help="Number format.")] = "bfloat16",
    size: Annotated[
        list[int] | None, typer.Option(help="In px, of one picture. Repeatable.", show_default="256 to 1536")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Pictures at a time, of the size below. Repeatable.", show_default="1 to 8")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="In px, of the pictures of a batch.")] = 512,
    file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Keep the cells here, a line each; continue it.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0, help="Begin no cell that would end later than this.", show_default="none"),
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Write table and curves into docs/benchmarks.md.")] = False,
) -> int:
    """Measure seconds and peak memory over sizes and batches.

    Exit code 1 if there was no time for a cell.
    """
    grid = dict.fromkeys([(side, 1) for side in size or SIZES] + [(batch_size, count) for count in batch or BATCHES])
    plans = [Plan(case, model, dtype, "cpu", side, count) for side, count in grid]
    typer.echo(_table([], peer))
    rows, left = shown(plans, file, minutes, lambda plan: measure(plan, peer), _row)
    if write and rows:
        title = f"{model}, {case}, {dtype}; {_machine()}."
        CURVES.write_text(drawing(_panels(rows, peer, batch_size)))
        PAGE.write_text(with_growth(PAGE.read_text(), f"{title}\n\n![curves](growth.svg)\n\n{_table(rows, peer)}"))
    return 1 if left else 0


def with_growth(page: str, found: str) -> str:
    """Return the page with `found` between its two marks, which are added at the end where there are none."""
    made = f"{BEGIN}\n\n{found}\n\n{END}"
    if BEGIN not in page:
        return f"{page.rstrip()}\n\n## Growth\n\n{made}\n"
    return re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: made, page, flags=re.DOTALL)


def _panels(rows: Sequence[tuple[Plan, Figures]], peer: str, batch_size: int) -> list[Panel]:
    """Return seconds and memory over the size of one picture, and over the number of pictures."""
    one = [(plan.size or 0, found) for plan, found in rows if plan.batch == 1]
    many = [(plan.batch or 0, found) for plan, found in rows if plan.size == batch_size]
    return [
        Panel(
            f"{unit} by {what}",
            {
                tool: sorted((at, found[key + ending]) for at, found in cells if key + ending in found)
                for tool, key in ((OURS, "ours"), (peer, "theirs"))
            },
        )
        for what, cells in (("px a side", one), (f"pictures of {batch_size} px", many))
        for unit, ending in (("seconds", ""), ("GiB", "_gib"))
    ]


def _table(rows: Sequence[tuple[Plan, Figures]], peer: str) -> str:
    head = f"| {' | '.join(COLUMNS).format(peer)} |\n|{'---|' * len(COLUMNS)}"
    return "\n".join([head, *(_row(plan, found) for plan, found in rows)])


def _row(plan: Plan, found: Figures) -> str:
    if found["absent"]:
        theirs, faster, memory = found["absent"], "", ""
    else:
        theirs, faster, memory = f"{found['theirs']:.3g}", f"{found['ratio']:.2f}", f"{found['theirs_gib']:.2f}"
    seconds = f"{found['ours']:.3g}"
    parts = str(plan.size), str(plan.batch), theirs, seconds, faster, memory, f"{found['ours_gib']:.2f}"
    return f"| {' | '.join(parts)} | {found['disturbed']} |"


def _machine() -> str:
    facts = machine_facts("cpu")
    return f"{facts['processor']}, {facts['instructions']}, {facts['threads']} threads, torch {facts['torch']}"


main = command(growth, "python -m benchmarks.growth")

if __name__ == "__main__":
    sys.exit(main(None))
