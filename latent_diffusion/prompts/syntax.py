r"""Attention syntax: the weight of each part of a prompt.

    (red)  1.1        (red:1.3)  1.3        [red]  1 / 1.1        \(  \)  \[  \]  \\  the character itself
    BREAK  what follows starts a new chunk of the text encoder

Nested weights multiply; a bracket that is never closed reaches to the end, one that was never opened is text. The rules
are those of the A1111 web UI (github.com/AUTOMATIC1111/stable-diffusion-webui, wiki "Features", Attention/emphasis), so
that its prompts mean here what they mean there. Time is linear in the prompt's length, whatever it holds.
"""

import re
from dataclasses import dataclass

from latent_diffusion.errors import warn

__all__ = ["MAX_WEIGHT", "Span", "parse_attention"]

MAX_WEIGHT = 10.0  # either sign; text states times more than this are noise to every published U-Net
STRONGER = 1.1  # what one pair of round brackets multiplies by, and one of square brackets divides by
_MOST = 1e30  # of a product on its way; 7448 open brackets would overflow
_TOKENS = re.compile(
    r"\\(?P<escaped>.?)"
    r"|(?P<open>[(\[])"
    r"|:\s*(?P<weight>[+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\)"
    r"|(?P<close>[)\]])"
    r"|(?P<text>[^\\()\[\]:]+|:)",
    re.DOTALL,
)
_BREAK = re.compile(r"\bBREAK\b")
_OPENER = {")": "(", "]": "["}


@dataclass(frozen=True)
class Span:
    """A part of the text and its weight; 1 = unchanged."""

    text: str
    weight: float


def parse_attention(prompt: str) -> tuple[tuple[Span, ...], ...]:
    """Return the spans of each part of `prompt` between BREAKs; neighbouring spans differ in weight.

    A weight beyond `MAX_WEIGHT` is brought back to it, with a `LatentDiffusionWarning`.
    """
    tokens = list(_TOKENS.finditer(prompt))
    factors = _bracket_factors(tokens)
    # Round brackets nest among themselves, and so do square ones, but "(a [b) c]" crosses: two stacks of products.
    products = {"(": [1.0], "[": [1.0]}
    parts: list[list[tuple[str, float]]] = [[]]
    for index, token in enumerate(tokens):
        kind, text = token.lastgroup, token.group()
        if kind == "open":
            stack = products[text]
            stack.append(_bounded(stack[-1] * factors[index]))
        elif index in factors:
            products["(" if kind == "weight" else _OPENER[text]].pop()
        else:
            literal = token.group("escaped") if kind == "escaped" else text
            weight = products["("][-1] * products["["][-1]
            pieces = _BREAK.split(literal) if kind == "text" else [literal]
            for number, piece in enumerate(pieces):
                if number:
                    parts.append([])
                parts[-1].append((_without_outer_space(piece, number, len(pieces)), weight))
    return tuple(_merged(part) for part in parts)


def _bracket_factors(tokens: list[re.Match[str]]) -> dict[int, float]:
    """Return the factor of every opening bracket by its place, and 1 for every closing one that has a partner."""
    factors: dict[int, float] = {}
    waiting: dict[str, list[int]] = {"(": [], "[": []}
    for index, token in enumerate(tokens):
        kind, text = token.lastgroup, token.group()
        if kind == "open":
            waiting[text].append(index)
            factors[index] = STRONGER if text == "(" else 1 / STRONGER
        elif kind == "weight" and waiting["("]:
            factors[waiting["("].pop()] = _bounded(float(token.group("weight")))
            factors[index] = 1.0
        elif kind == "close" and waiting[_OPENER[text]]:
            waiting[_OPENER[text]].pop()
            factors[index] = 1.0
    return factors


def _bounded(product: float) -> float:
    return min(max(product, -_MOST), _MOST)


def _without_outer_space(piece: str, number: int, count: int) -> str:
    """Take the space around BREAK away, not that at the ends of the text."""
    piece = piece.lstrip() if number else piece
    return piece.rstrip() if number < count - 1 else piece


def _merged(part: list[tuple[str, float]]) -> tuple[Span, ...]:
    """Join neighbours of one weight, so that the tokenizer sees them as one text; bring weights into range."""
    runs: list[tuple[list[str], float]] = []
    for text, weight in part:
        if text and runs and runs[-1][1] == weight:
            runs[-1][0].append(text)
        elif text:
            runs.append(([text], weight))
    return tuple(Span("".join(texts), _capped(weight, "".join(texts))) for texts, weight in runs)


def _capped(weight: float, text: str) -> float:
    if abs(weight) <= MAX_WEIGHT:
        return weight
    capped = MAX_WEIGHT if weight > 0 else -MAX_WEIGHT
    message = f"the prompt gives {text[:40]!r} the weight {weight:g}; {capped:g}, the largest weight, is used"
    warn(message)
    return capped
