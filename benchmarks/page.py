"""Remake the tables of docs/benchmarks.md from the JSON files of `python -m benchmarks`.

    python -m benchmarks.page RESULTS/ [--page docs/benchmarks.md]

Everything between the page's two marks is replaced: machine, date and command of every file, then a table for each
piece of work, and one for lossy ways. Doubtful rows ("contended") are kept and marked.
"""

import argparse
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- tables: made by benchmarks/page.py -->", "<!-- end of tables -->"
LOSSY = "lossy:"
HEAD = "| tool | dtype | n | seconds min / median / max | first | % of peak | rel. error | GiB | ready s | {last} |"
Row = dict[str, Any]


def main() -> None:
    """Read the files and write the page."""
    parser = argparse.ArgumentParser(description="Remake the tables of a page from JSON files.")
    parser.add_argument("results", type=Path, help="folder of JSON files")
    parser.add_argument("--page", type=Path, default=PAGE)
    asked = parser.parse_args()
    files = [json.loads(file.read_text()) for file in sorted(asked.results.glob("*.json"))]
    if not files:
        raise SystemExit(f"{asked.results} has no JSON file; make some with `python -m benchmarks --json`")
    text = asked.page.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    asked.page.write_text(before + BEGIN + "\n\n" + "\n".join(lines(files)) + "\n" + END + after)


def lines(files: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Return the page's part that is made."""
    for machine in {json.dumps(file["machine"] | {"load_average": None}): file["machine"] for file in files}.values():
        yield _machine(machine)
    yield ""
    yield f"Measured {', '.join(sorted({file['started'][:10] for file in files}))}."
    works: dict[str, list[list[Row]]] = {}
    for file in files:
        races: dict[str, list[Row]] = {}
        for row in file["rows"]:
            races.setdefault(json.dumps([row["title"], row["plan"]]), []).append(row)
        for work, rows in races.items():
            works.setdefault(work, []).append(rows)
    for found in works.values():
        yield from _heading(found[0][0])
        for rows in found:
            yield from _race(rows)
    yield from ["", "### Commands", "", "```"]
    yield from (f"python -m benchmarks {re.sub(r' --json(=| )[^ ]+', '', file['command'])}" for file in files)
    yield "```"


def _machine(machine: dict[str, Any]) -> str:
    gpu = f"{machine['gpu']} ({machine['gpu_memory_gib']} GiB, CUDA {machine['cuda']}), " if "gpu" in machine else ""
    bf16 = ", bfloat16 instructions" if machine["bfloat16_instructions"] else ""
    amx = ", AMX" if machine.get("amx") else ""  # rows of earlier versions lack it
    versions = ", ".join(
        f"{name} {machine[name]}" for name in ("torch", "diffusers", "transformers", "openvino") if machine[name]
    )
    return (
        f"{gpu}{machine['processor']}, {machine['instructions']}{bf16}{amx}, {machine['threads']} threads, "
        f"{machine['memory_gib']} GiB; {versions}, oneDNN {machine['onednn']}, Python {machine['python']}."
    )


def _heading(first: Row) -> Iterator[str]:
    plan = first["plan"]
    steps = f", {plan['steps']} steps" if plan["case"] == "generate" else ""
    yield ""
    yield f"### {first['title']}: {plan['model']}, {first['size']} px, batch {first['samples']}{steps}, {plan['dtype']}"


def _race(rows: list[Row]) -> Iterator[str]:
    peaks = {row["dtype"]: row["peak"] for row in rows if row["peak"]}
    reached = ", ".join(f"{peak:.0f} GFLOP/s in {dtype}" for dtype, peak in peaks.items())
    yield from ["", f"{rows[0]['gflop']:.4g} GFLOP a call; the machine reached {reached}."]
    exact = [row for row in rows if not row["tool"].startswith(LOSSY)]
    yield from _table(exact, "ours faster by")
    lossy = [row for row in rows if row["tool"].startswith(LOSSY)]
    if lossy:
        yield from ["", "Lossy, compared with the exact picture:"]
        yield from _table([exact[0], *lossy], "faster than exact")
    for row in rows:
        share = ", ".join(f"{name} {value:.0%}" for name, value in row["split"].items())
        if share and not row["losses"]:
            yield from ["", f"{row['tool']}: {share}."]
        if row["losses"]:
            losses = ", ".join(f"{loss:.5f}" for loss in row["losses"])
            yield from [
                "",
                f"{row['tool']}: {row['samples'] / row['median']:.1f} samples/s ({share}); losses {losses}.",
            ]


def _table(rows: list[Row], last: str) -> Iterator[str]:
    yield ""
    yield HEAD.format(last=last)
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        yield _line(row)


def _line(row: Row) -> str:
    name = row["tool"].removeprefix(LOSSY)
    if row["skipped"]:
        return f"| {name} | - | - | - | - | - | - | - | - | skipped: {row['skipped']} |"
    ready = ", ".join(f"{key} {value:.1f}" for key, value in row["ready"].items())
    error = "-" if row["agreement"] is None else f"{row['agreement']['error']:.1e}"
    if row["agreement"] and row["agreement"]["psnr"] is not None and math.isfinite(row["agreement"]["psnr"]):
        error += f", {row['agreement']['psnr']:.0f} dB"
    flags = (" *lossy*" if row["lossy"] and not row["tool"].startswith(LOSSY) else "") + (
        " *contended*" if row["contended"] else ""
    )
    ratio = row["ratio"]
    shown = "" if ratio is None else f"**{ratio['value']:.2f}** ({ratio['low']:.2f}-{ratio['high']:.2f})"
    times = " / ".join(_seconds(value) for value in (min(row["seconds"]), row["median"], max(row["seconds"])))
    return (
        f"| {name} | {row['dtype']} | {len(row['seconds'])} | {times} | {_seconds(row['first'])} | "
        f"{row['percent_of_peak']:.0f} | {error} | {row['peak_gib']:.1f} | {ready} | {shown}{flags} |"
    )


def _seconds(value: float) -> str:
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 2
    return f"{value:.{digits}f}"


if __name__ == "__main__":
    main()
