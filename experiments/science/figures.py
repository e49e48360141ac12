"""Write what an experiment of docs/science/ found: figures in JSON, rows of a table into its page, a small chart.

A run keeps what it has in its JSON file and goes on there when it is started again.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.compare_samplers import round_numbers

__all__ = ["PAGES", "Found", "chart", "fill", "mean_and_error", "save_picture"]

PAGES = Path(__file__).parents[2] / "docs" / "science"
MOST_BYTES = 60_000  # of a picture on a page
COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#8d5a97", "#d98e04", "#555555")


class Found:
    """The figures found so far, by name, in a JSON file that is written after each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self.values[name] = value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(self.values, indent=1) + "\n")
        new.replace(self.path)


def mean_and_error(values: Sequence[float] | np.ndarray, digits: int, sign: str = "") -> str:
    """Return "mean ± standard error"; with the sign "+" a mean above 0 has one."""
    return f"{np.mean(values):{sign}.{digits}f} ± {np.std(values, ddof=1) / len(values) ** 0.5:.{digits}f}"


def fill(page: Path, mark: str, lines: Sequence[str]) -> None:
    """Put `lines` between `<!-- measured: MARK -->` and the next `<!-- end of measured -->` of a page."""
    start, end = f"<!-- measured: {mark} -->", "<!-- end of measured -->"
    text = page.read_text()
    if start not in text:
        raise ValueError(f"{page}: has no line {start}")
    new = "\n".join([start, *lines, end])
    page.write_text(re.sub(f"{re.escape(start)}.*?{re.escape(end)}", lambda _: new, text, count=1, flags=re.DOTALL))


def save_picture(sheet: Image.Image, path: Path) -> None:
    """Write a sheet as WebP of at most 60 kB."""
    for quality in (90, 80, 70, 60, 50, 40):
        sheet.save(path, quality=quality, method=6)
        if path.stat().st_size <= MOST_BYTES:
            return
    raise ValueError(f"{path}: {path.stat().st_size} bytes at the lowest quality; show fewer pictures")


def chart(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], x_title: str, *, even: bool = False
) -> str:
    """Return an SVG: for each title of a panel its lines by name, points (x, y) with y from 0 or the least value.

    Args:
        panels: title -> name of a line -> its points.
        x_title: the words under each panel.
        even: whether the distinct values of x stand at equal distances.
    """
    width, height, left = 300, 240, 44
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width * len(panels) + 10}" '
        f'height="{height + 8 + 15 * len(names)}" font-family="sans-serif" font-size="11">'
        '<rect width="100%" height="100%" fill="white"/>'
    ]
    for number, (title, lines) in enumerate(panels.items()):
        points = [point for line in lines.values() for point in line]
        xs = sorted({x for x, _ in points})
        low, high = min(0.0, *(y for _, y in points)), max(1e-9, *(y for _, y in points)) * 1.05
        start, right, bottom = number * width + left, (number + 1) * width - 12, height - 34

        def across(x: float, start=start, right=right, xs=xs) -> float:
            place = xs.index(x) / max(len(xs) - 1, 1) if even else (x - xs[0]) / ((xs[-1] - xs[0]) or 1.0)
            return start + place * (right - start)

        def up(y: float, low=low, high=high, bottom=bottom) -> float:
            return bottom - (y - low) / (high - low) * (bottom - 24)

        parts.append(f'<text x="{start}" y="14" font-weight="bold">{title}</text>')
        parts.append(f'<path d="M{start} 20V{bottom}" stroke="black"/>')
        parts.append(f'<path d="M{start} {up(0):.0f}H{right}" stroke="black"/>')
        parts.append(f'<text x="{right}" y="{height - 6}" text-anchor="end">{x_title}</text>')
        for tick in xs if even else [xs[0], *(tick for tick in round_numbers(xs[-1]) if tick > xs[0])]:
            parts.append(f'<text x="{across(tick):.0f}" y="{bottom + 13}" text-anchor="middle">{tick:g}</text>')
        for tick in round_numbers(high):
            parts.append(f'<text x="{start - 4}" y="{up(tick) + 4:.0f}" text-anchor="end">{tick:g}</text>')
        for name, line in lines.items():
            colour = COLOURS[names.index(name) % len(COLOURS)]
            path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in line)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
            parts += [f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="2.5" fill="{colour}"/>' for x, y in line]
    for number, name in enumerate(names):
        y = height + 8 + 15 * number
        parts.append(f'<rect x="{left}" y="{y - 9}" width="10" height="10" fill="{COLOURS[number % len(COLOURS)]}"/>')
        parts.append(f'<text x="{left + 15}" y="{y}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
