"""Curves as an SVG: panels of lines on two logarithmic axes, so that a power is a straight line."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Panel", "drawing"]

WIDTH, HEIGHT, MARGIN = 360, 260, 48  # of a panel, px
COLOURS = ("#1f6fb4", "#c8552b", "#4a9c4a", "#7a5aa6")


@dataclass(frozen=True)
class Panel:
    """One diagram: lines by their names, each of points (x, y) above zero."""

    title: str
    lines: Mapping[str, Sequence[tuple[float, float]]]


def drawing(panels: Sequence[Panel]) -> str:
    """Return the panels, two in a row."""
    rows = math.ceil(len(panels) / 2)
    size = f'width="{2 * WIDTH}" height="{rows * HEIGHT}" viewBox="0 0 {2 * WIDTH} {rows * HEIGHT}"'
    style = 'font-family="sans-serif" font-size="11"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for index, panel in enumerate(panels):
        parts.append(f'<g transform="translate({index % 2 * WIDTH} {index // 2 * HEIGHT})">')
        parts += _panel(panel)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel) -> list[str]:
    points = [point for line in panel.lines.values() for point in line]
    parts = [f'<text x="{WIDTH / 2}" y="20" text-anchor="middle" font-size="13">{escape(panel.title)}</text>']
    if not points:
        return parts
    xs, ys = sorted({x for x, _ in points}), [y for _, y in points]
    across = _scale(min(xs), max(xs), MARGIN, WIDTH - MARGIN / 2)
    up = _scale(min(ys), max(ys), HEIGHT - MARGIN, MARGIN)
    for x in xs:
        parts += [
            _line(across(x), MARGIN, across(x), HEIGHT - MARGIN),
            _text(across(x), HEIGHT - MARGIN + 16, "middle", x),
        ]
    for y in _ticks(min(ys), max(ys)):
        parts += [_line(MARGIN, up(y), WIDTH - MARGIN / 2, up(y)), _text(MARGIN - 5, up(y) + 4, "end", y)]
    for index, (name, line) in enumerate(panel.lines.items()):
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="3" fill="{colour}"/>' for x, y in line]
        parts.append(f'<text x="{MARGIN + 8}" y="{MARGIN + 14 + 15 * index}" fill="{colour}">{escape(name)}</text>')
    return parts


def _scale(least: float, most: float, start: float, stop: float) -> Callable[[float], float]:
    """Return the place of a number on a logarithmic axis."""
    span = math.log(most / least) or 1.0
    return lambda value: start + (stop - start) * math.log(value / least) / span


def _ticks(least: float, most: float) -> list[float]:
    """Return numbers 1, 2 and 5 of every power of ten in the range."""
    powers = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    return [tick for power in powers for digit in (1, 2, 5) if least <= (tick := digit * 10.0**power) <= most]


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _text(x: float, y: float, anchor: str, value: float) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#555">{value:g}</text>'
