r"""Prompts of other tools, translated into this package's syntax.

    ComfyUI    (red) 1.1   (red:1.4) 1.4, not times the weight around it   \( \) brackets   nothing else is syntax
    compel     (red)1.4 "red"1.4   red+ (red)++ 1.1 each   red- 0.9 each   (red) 1   \( \) \" the character; InvokeAI's
    NovelAI    {red} 1.05   [red] 1 / 1.05   1.4::red:: 1.4

Each reader returns the stretches of a prompt with their weights; `written` puts them down as "(red:1.4)", with all that
would be syntax here, such as "[", "AND" and "<lora:", written so that it is text. Sources: comfy/sd1_clip.py,
`token_weights`; compel 2.5.1, `PromptParser`; docs.novelai.net, "Strengthening and weakening".
"""

import re
from collections.abc import Callable, Sequence

__all__ = ["LANGUAGES", "from_comfyui", "from_compel", "from_novelai", "written"]

Stretches = list[tuple[str, float]]
MAX_DEPTH = 60  # brackets deeper than this are text; 1.1^60 is 300 times what counts
_SYNTAX = re.compile(r"[\\()\[\]]|(?<![^\W_])(?:AND|BREAK)(?![^\W_])|\b(?:AND|BREAK)\b|<(?=(?:lora|lyco|hypernet):)")


def written(stretches: Sequence[tuple[str, float]]) -> str:
    """Return a prompt that is read here as these stretches of text, each with its weight."""
    pieces = []
    for text, weight in stretches:
        escaped = _SYNTAX.sub(_as_text, text)
        pieces.append(escaped if weight == 1 else f"({escaped}:{weight:.6g})")
    return "".join(pieces)


def _as_text(found: re.Match[str]) -> str:
    """Return what is syntax here as text: a backslash before a character, or within a word."""
    mark = found.group()
    return f"\\{mark}" if mark in "\\()[]" else f"{mark[:1]}\\{mark[1:]}"


def from_comfyui(prompt: str) -> Stretches:
    """Return how ComfyUI reads a prompt."""
    text = prompt.replace("\\)", "\0\1").replace("\\(", "\0\2")
    waiting, found = [(text, 1.0, 0)], []
    while waiting:
        text, weight, depth = waiting.pop()
        parts: list[tuple[str, float, int]] = []
        for part in _outer_brackets(text) if depth < MAX_DEPTH else []:
            if len(part) >= 2 and part[0] == "(" and part[-1] == ")":
                parts.append(_weighted(part[1:-1], weight, depth + 1))
            else:
                found_text = part.replace("\0\1", ")").replace("\0\2", "(")
                parts.append((found_text, weight, -1))
        if depth == -1 or depth >= MAX_DEPTH:
            found.append((text, weight))
        else:
            waiting += reversed(parts)
    return found


def _weighted(inner: str, weight: float, depth: int) -> tuple[str, float, int]:
    """Return what stands in brackets without its weight, and the weight."""
    text, colon, number = inner.rpartition(":")
    if colon and text:
        try:
            return text, float(number), depth
        except ValueError:
            pass
    return inner, weight * 1.1, depth


def _outer_brackets(text: str) -> list[str]:
    """Return the text cut at its outermost brackets, which stay with what they hold."""
    parts, start, depth = [], 0, 0
    for place, letter in enumerate(text):
        if letter == "(":
            if depth == 0:
                parts.append(text[start:place])
                start = place
            depth += 1
        elif letter == ")":
            depth -= 1
            if depth == 0:
                parts.append(text[start : place + 1])
                start = place + 1
    return [part for part in [*parts, text[start:]] if part]


_OPERATOR = re.compile(r"""[)"]?\.(?:swap|blend|and|add|attend)\(|\b(?:with|use)Lora\(""")
_ESCAPED = re.compile(r'\\([()"])')
_WORD = re.compile(
    r"""(?:\\[()",.+\-=]|[-+](?![\s()",.+\-=]|$)|-?\d+|[^\s()",.+\-=])+""",
)
_POWER = re.compile(r"\++|-+")
_NUMBER = re.compile(r"[+-]?\d+\.\d*(?:[eE][+-]?\d+)?|-?\d+")


def from_compel(prompt: str) -> Stretches | None:
    """Return how compel reads a prompt; None where it uses `.blend`, `.and`, `.swap` or a LoRA, which have no like."""
    if _OPERATOR.search(prompt):
        return None
    return _fragments(prompt, 1.0, 0, within=False)


def _fragments(text: str, weight: float, depth: int, *, within: bool) -> Stretches:
    """Return the fragments of a text; `within` brackets commas end words."""
    found: Stretches = []
    place = 0
    while place < len(text):
        if text[place].isspace():
            found.append((" ", weight))
            place += 1
            continue
        end, inner = _held(text, place) if depth < MAX_DEPTH else (place, "")
        if end > place:
            power = _NUMBER.match(text, end) or _POWER.match(text, end)
            factor, place = _factor(power.group() if power else ""), power.end() if power else end
            found += _fragments(inner, weight * factor, depth + 1, within=True)
            continue
        word = _WORD.match(text, place)
        power = _POWER.match(text, word.end()) if word else None
        if word and power:
            found.append((_ESCAPED.sub(r"\1", word.group()), weight * _factor(power.group())))
            place = power.end()
            continue
        stop = re.compile(r"\S+").match(text, place)
        end = word.end() if word and within else place + 1 if within or stop is None else stop.end()
        found.append((_ESCAPED.sub(r"\1", text[place:end]), weight))
        place = end
    return _joined(found)


def _held(text: str, place: int) -> tuple[int, str]:
    """Return where the brackets or quotes that open at `place` end, and what they hold; `place` where none do."""
    opening = text[place]
    if opening not in '("':
        return place, ""
    depth, at = 0, place
    while at < len(text):
        letter = text[at]
        if letter == "\\":
            at += 1
        elif opening == '"' and letter == '"' and at > place:
            return at + 1, text[place + 1 : at].replace('\\"', '"')
        elif opening == "(" and letter in "()":
            depth += 1 if letter == "(" else -1
            if depth == 0:
                return at + 1, text[place + 1 : at]
        at += 1
    return place, ""


def _factor(power: str) -> float:
    """Return the weight that "++", "--" or "1.4" stand for."""
    if not power:
        return 1.0
    if power.strip("+") == "":
        return 1.1 ** min(len(power), MAX_DEPTH)
    return 0.9 ** min(len(power), MAX_DEPTH) if power.strip("-") == "" else float(power)


_NOVELAI = re.compile(r"(?P<number>-?\d+(?:\.\d+)?)?::|(?P<mark>[{}\[\]])|[^{}\[\]:\d-]+|.", re.DOTALL)


def from_novelai(prompt: str) -> Stretches:
    """Return how NovelAI reads a prompt."""
    found: Stretches = []
    curly, square, number = 0, 0, 1.0
    for token in _NOVELAI.finditer(prompt):
        mark = token.group("mark")
        if mark:
            curly += {"{": 1, "}": -1}.get(mark, 0)
            square += {"[": 1, "]": -1}.get(mark, 0)
        elif token.group().endswith("::"):
            number = float(token.group("number")) if token.group("number") else 1.0
        else:
            deep = max(min(curly - square, MAX_DEPTH), -MAX_DEPTH)
            found.append((token.group(), number * 1.05**deep))
    return _joined(found)


def _joined(stretches: Stretches) -> Stretches:
    """Join neighbours of one weight."""
    found: Stretches = []
    for text, weight in stretches:
        if found and found[-1][1] == weight:
            found[-1] = (found[-1][0] + text, weight)
        else:
            found.append((text, weight))
    return found


LANGUAGES: dict[str, Callable[[str], Stretches | None]] = {
    "ComfyUI": from_comfyui,
    "SwarmUI": from_comfyui,
    "Fooocus": from_comfyui,
    "InvokeAI": from_compel,
    "NovelAI": from_novelai,
}
"""Tool -> how it reads a prompt; the others read as we do."""
