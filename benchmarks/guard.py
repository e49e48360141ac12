"""Never slower: this package's way against its own plain one, over sizes, batches and number formats.

    python -m benchmarks.guard [--model sd1] [--json guard.jsonl]

Each cell is a race of two processes with the same weights, in turn: `ours`, and `ours-plain`, which is the same network
in torch's own layers. A cell fails where the plain way's time is under .98 of ours. One that something else
disturbed is measured again, and then named, not judged. With `--json` the cells of an earlier run are kept, and with
`--minutes` a run ends in time: the same command continues it (`benchmarks.cells`).
"""

import itertools
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.case import OURS, PLAIN
from benchmarks.cells import Figures, shown
from benchmarks.command import command
from benchmarks.plan import Plan
from benchmarks.race import race, ratio
from latent_diffusion.errors import ResourceError

__all__ = ["LEAST", "guard", "main"]

LEAST = 0.98  # the plain way's time over ours
TRIES = 2  # of a cell that is disturbed
COLUMNS = ("case", "size", "batch", "dtype", "plain, s", "ours, s", "ratio", "95 %", "verdict")


def measure(plan: Plan) -> Figures:
    """Race one cell, and return its figures: seconds of both, their ratio with its interval, the verdict.

    Raises:
        ResourceError: a side cannot run.
    """
    found: Figures = {}
    for _ in range(TRIES):
        ours, plain = list(race(plan, (OURS, PLAIN), None))[-1]
        if absent := ours.absent or plain.absent:
            raise ResourceError(f"{plan.case} at {plan.size} px, batch {plan.batch}, {plan.dtype}: {absent}")
        faster, disturbed = ratio(plain.seconds, ours.seconds), ours.contended or plain.contended
        verdict = f"disturbed: {disturbed}" if disturbed else "slower" if faster.value < LEAST else "ok"
        found = {"plain": plain.median, "ours": ours.median, **asdict(faster), "verdict": verdict}
        if not disturbed:
            break
    return found


def guard(
    cases: Annotated[
        list[str] | None, typer.Argument(metavar="CASE", help="unet-step or vae-decode.", show_default="both")
    ] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="A family, emoji, or a model's folder.")] = "sd1",
    size: Annotated[
        list[int] | None, typer.Option(help="In px. Repeatable.", show_default="256, 512, 768 and 1024")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Pictures at a time. Repeatable.", show_default="1, 2 and 4")
    ] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="Repeatable.", show_default="float32 and bfloat16")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Keep the cells here, a line each; continue it.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.1, help="Begin no cell that would end later than this.", show_default="none"),
    ] = None,
) -> int:
    """Race this package's fast way against its plain one, and fail where it is slower.

    Exit code 1 if a cell is under .98 times the plain way's speed on a quiet machine, or there was no time for it.
    """
    grid = itertools.product(
        cases or ("unet-step", "vae-decode"), size or (256, 512, 768, 1024), batch or (1, 2, 4),
        dtype or ("float32", "bfloat16"),
    )  # fmt: skip
    typer.echo(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    plans = [Plan(case, model, form, device, side, count) for case, side, count, form in grid]
    rows, left = shown(plans, file, minutes, measure, _row)
    return 1 if left or any(found["verdict"] == "slower" for _, found in rows) else 0


def _row(plan: Plan, found: Figures) -> str:
    times = f"{found['plain']:.4g}", f"{found['ours']:.4g}", f"{found['value']:.2f}x"
    span = f"{found['low']:.2f} to {found['high']:.2f}"
    cells = plan.case, str(plan.size), str(plan.batch), plan.dtype, *times, span, found["verdict"]
    return f"| {' | '.join(cells)} |"


main = command(guard, "python -m benchmarks.guard")

if __name__ == "__main__":
    sys.exit(main(None))
