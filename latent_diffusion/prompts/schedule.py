"""Prompts that change while a picture is drawn.

    [from:to:0.5]   `from` for the first half of the steps, then `to`      [from:to:8]  for the first 8 steps
    [to:0.5]        nothing, then `to`                                     [from::0.5]  `from`, then nothing
    [a|b|c]         a, b, c, a, b, ... step by step

They nest, and hold any other syntax. What looks otherwise, such as "[red]" or an unclosed bracket, stays text and is
left to the attention syntax. A number with a point is a share of the steps, one without is a number of steps. Rules:
A1111 web UI, wiki "Features", Prompt editing and Alternating Words. Time is linear in the prompt's length per step.
"""

import re
from dataclasses import dataclass, field

__all__ = ["texts_by_step"]

_TOKENS = re.compile(r"\\.?|[\[\]():|]|[^\\\[\]():|]+", re.DOTALL)
_WHEN = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)\s*")


@dataclass(frozen=True)
class _Switch:
    """One text up to a step, another from there."""

    before: list
    after: list
    when: str  # as written: "0.5" is a share of the steps, "8" a number of them

    def first_step(self, steps: int) -> int:
        """Return the first step, from 0, of the second text."""
        return int(min(max(float(self.when) * (steps if "." in self.when else 1), 0), steps))


@dataclass(frozen=True)
class _Turn:
    """One text after the other, a step each."""

    options: list[list]


@dataclass
class _Frame:
    """A bracket that is still open."""

    bracket: str  # "[", "(", or "" for the whole prompt
    items: list[list] = field(default_factory=lambda: [[]])  # what stands between the marks
    marks: list[str] = field(default_factory=list)  # the ":" and "|" of this bracket's own

    def text(self, end: str) -> list:
        """Return everything as it was written."""
        pieces: list = [self.bracket, self.items[0]]
        for mark, item in zip(self.marks, self.items[1:], strict=True):
            pieces += [mark, item]
        return [*pieces, end]

    def close(self) -> object:
        """Return what a square bracket means."""
        marks, items = self.marks, self.items
        if marks and set(marks) == {"|"}:
            return _Turn(items)
        when = "".join(items[-1]) if all(isinstance(piece, str) for piece in items[-1]) else ""
        if marks in ([":"], [":", ":"]) and _WHEN.fullmatch(when):
            return _Switch(items[0] if len(items) == 3 else [], items[-2], when)
        return self.text("]")


def texts_by_step(prompt: str, steps: int) -> tuple[str, ...]:
    """Return the text that holds at each of `steps` steps."""
    tree, changes = _parse(prompt)
    if not changes:
        return (prompt,) * steps
    return tuple(_render(tree, step, steps) for step in range(steps))


def _parse(prompt: str) -> tuple[list, bool]:
    """Return the prompt as nested lists of texts, switches and turns, and whether it holds any of the latter two."""
    frames, squares, changes = [_Frame("")], 0, False
    for token in _TOKENS.findall(prompt):
        top = frames[-1]
        if token in "[(":
            frames.append(_Frame(token))
            squares += token == "["
        elif token in ":|" and top.bracket == "[":
            top.marks.append(token)
            top.items.append([])
        elif token == ")" and top.bracket == "(":
            frames.pop()
            frames[-1].items[-1].append(top.text(")"))
        elif token == "]" and squares:
            squares -= 1
            while frames[-1].bracket == "(":  # never closed: text
                _give_up(frames)
            node = frames.pop().close()
            changes = changes or not isinstance(node, list)
            frames[-1].items[-1].append(node)
        else:
            top.items[-1].append(token)
    while len(frames) > 1:
        _give_up(frames)
    return frames[0].items[0], changes


def _give_up(frames: list[_Frame]) -> None:
    unclosed = frames.pop()
    frames[-1].items[-1].append(unclosed.text(""))


def _render(tree: list, step: int, steps: int) -> str:
    """Return the text of one step; a stack of its own instead of recursion, for prompts of 5000 brackets."""
    texts: list[str] = []
    todo: list[object] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, str):
            texts.append(node)
        elif isinstance(node, _Switch):
            todo.append(node.before if step < node.first_step(steps) else node.after)
        elif isinstance(node, _Turn):
            todo.append(node.options[step % len(node.options)])
        elif isinstance(node, list):
            todo.extend(reversed(node))
    return "".join(texts)
