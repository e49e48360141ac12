"""A grid of cells, measured from the least work to the most, kept in a file, and ended in time.

An interrupted run is continued by the same command: cells that the file has are not measured again. What a cell will
take is predicted from the cell of its kind before it, by pixels and pictures; one that does not fit is left for later.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from benchmarks.plan import Plan

__all__ = ["Cell", "Figures", "Measure", "cells", "shown"]

Figures = dict[str, Any]
Measure = Callable[[Plan], Figures]
Cell = tuple[Plan, Figures | None]
"""A plan and its figures; None = there was no time for it."""

GROWTH = 1.25  # power of the pixels that a cell's time grows with: attention's part has the power 2
SLACK = 1.2  # times the prediction is set aside


def shown(
    plans: Sequence[Plan],
    file: Path | None,
    minutes: float | None,
    measure: Measure,
    row: Callable[[Plan, Figures], str],
) -> tuple[list[tuple[Plan, Figures]], int]:
    """Print the row of each cell as soon as it is measured; return the cells that were, and how many were not.

    Arguments are those of `cells`; `row` returns a line of the table.
    """
    rows = []
    for plan, found in cells(plans, file, minutes, measure):
        if found is not None:
            rows.append((plan, found))
            typer.echo(row(plan, found))
    left = len(plans) - len(rows)
    if left:
        typer.echo(f"no time for {left} of {len(plans)} cells; the same command continues with --json FILE")
    return rows, left


def cells(
    plans: Iterable[Plan],
    file: Path | None,
    minutes: float | None,
    measure: Measure,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Cell]:
    """Yield each plan with its figures, the least work first.

    Args:
        plans: with size and batch.
        file: keeps figures, a line each; None = they are not kept.
        minutes: no cell begins that would end later than this; None = all are measured.
        measure: returns a cell's figures.
        clock: seconds.
    """
    known, rates, start = _read(file), dict[tuple[str, str], float](), clock()
    for plan in sorted(plans, key=_work):
        key, kind = json.dumps(asdict(plan)), (plan.case, plan.dtype)
        if key not in known:
            taken = clock() - start
            if minutes is not None and taken + SLACK * rates.get(kind, 0.0) * _work(plan) >= 60 * minutes:
                yield plan, None
                continue
            known[key] = measure(plan)
            known[key]["took"] = clock() - start - taken
            if file is not None:
                with file.open("a") as lines:
                    lines.write(json.dumps([key, known[key]]) + "\n")
        rates[kind] = known[key].get("took", 0.0) / _work(plan)
        yield plan, known[key]


def _work(plan: Plan) -> float:
    assert plan.size and plan.batch, "a cell has both"
    return plan.size ** (2 * GROWTH) * plan.batch


def _read(file: Path | None) -> dict[str, Any]:
    if file is None or not file.exists():
        return {}
    return dict(json.loads(line) for line in file.read_text().splitlines())
