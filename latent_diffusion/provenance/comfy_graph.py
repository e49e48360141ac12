"""A ComfyUI graph read against its links: the sampler that made the picture, its numbers, its texts and its latents.

A graph is {id: {"class_type": ..., "inputs": {name: value or [id, output]}}}. Anyone may add kinds of nodes, so what
counts is the names of inputs: `seed`, `steps`, `cfg`, `positive`. Where a node has an input `positive` and an input
`negative`, its first output is the positive side and its second the negative, as the nodes declare them.
"""

from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["CONDITIONING", "LATENTS", "ComfyGraph", "Node", "graph_of"]

MAX_NODES = 5000
MAX_SAMPLERS = 50
MAX_TEXT = 100_000  # characters of a prompt joined of several texts
MAX_LINKS = 100  # that lead to one text
ENDS = ("SaveImage", "PreviewImage")
TEXTS = ("text", "text_g", "text_l", "prompt", "string", "value", "Text")  # inputs that hold a text
NUMBERS = ("value", "int", "seed", "number", "float", "Value")  # inputs of nodes that hand on one number
CONDITIONING = ("positive", "negative", "conditioning")
LATENTS = ("latent_image", "samples", "latent", "latents", "pixels", "image", "images", "optional_latent")
OTHER_MODELS = ("model", "clip", "vae", "upscale_model", "control_net")
NO_TEXT = "ConditioningZeroOut"  # its output is zero whatever the text behind it
JOINS = ("string_a", "text_a"), ("string_b", "text_b")  # StringConcatenate, and the node most used before it


@dataclass(frozen=True)
class Node:
    """One node of a graph."""

    kind: str
    inputs: Mapping[str, Any]

    @property
    def is_sampler(self) -> bool:
        """Whether it takes noise off latents."""
        return {"steps", "positive"} <= self.inputs.keys() or self.kind.startswith("SamplerCustom")


@dataclass(frozen=True)
class ComfyGraph:
    """The nodes of a graph by their ids."""

    nodes: Mapping[str, Node]

    def last_sampler(self) -> str | None:
        """Return the sampler nearest to the picture that was saved, else one that no other goes on from; or None."""
        ends = [key for key, node in self.nodes.items() if node.kind.startswith(ENDS)]
        found = next((key for key in self.upstream(ends) if self.nodes[key].is_sampler), None)
        if found is not None:
            return found
        samplers = [key for key, node in self.nodes.items() if node.is_sampler][:MAX_SAMPLERS]
        earlier = {behind for key in samplers for behind in self.upstream([key]) if behind != key}
        return next((key for key in reversed(samplers) if key not in earlier), samplers[-1] if samplers else None)

    def source(self, value: object) -> str | None:
        """Return the node that an input is linked to, or None where it holds a value of its own."""
        if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int)):
            return None
        return str(value[0]) if str(value[0]) in self.nodes else None

    def upstream(
        self, starts: Collection[str], *, without: Collection[str] = (), stop_at_samplers: bool = False
    ) -> Iterator[str]:
        """Yield the nodes that `starts` depend on, nearest first, each once.

        Args:
            starts: ids of nodes, which come first.
            without: names of inputs that are not followed.
            stop_at_samplers: yield a sampler, but not what is behind it.
        """
        waiting, seen = deque(starts), set(starts)
        while waiting:
            key = waiting.popleft()
            yield key
            if stop_at_samplers and self.nodes[key].is_sampler:
                continue
            for name, value in self.nodes[key].inputs.items():
                source = None if name in without else self.source(value)
                if source is not None and source not in seen:
                    seen.add(source)
                    waiting.append(source)

    def value(self, value: object) -> object:
        """Return the number or text that an input holds or is linked to; None where the link ends elsewhere."""
        for _ in range(20):
            key = self.source(value)
            if key is None:
                return None if isinstance(value, list | dict) else value
            inputs = self.nodes[key].inputs
            name = next((name for name in NUMBERS if name in inputs), None)
            value = inputs.get(name) if name else None
        return None

    def nearest(
        self, names: Collection[str], starts: Collection[str], *, without: Collection[str] = ()
    ) -> tuple[bool, object]:
        """Return whether a node on the way has an input with one of these names, and the nearest one's value.

        The value is None where the input is linked to a node whose number cannot be read.
        """
        for key in self.upstream(starts, without=without):
            inputs = self.nodes[key].inputs
            name = next((name for name in names if name in inputs), None)
            if name is not None:
                return True, self.value(inputs[name])
        return False, None

    def latents_behind(self, sampler: str) -> list[str]:
        """Return the nodes that made what `sampler` starts from, nearest first, up to an earlier sampler if any."""
        inputs = self.nodes[sampler].inputs
        starts = [key for name in LATENTS if (key := self.source(inputs.get(name))) is not None]
        without = (*CONDITIONING, *OTHER_MODELS)
        return list(self.upstream(starts[:1], without=without, stop_at_samplers=True))

    def prompt(self, sampler: str, side: str) -> tuple[str | None, str | None]:
        """Return the text behind the input `side` ("positive" or "negative") of a sampler, and the node that holds it.

        The text is None where the links lead to none.
        """
        for key in self.upstream([sampler], without=(*LATENTS, *OTHER_MODELS)):
            inputs = self.nodes[key].inputs
            if side in inputs:
                return self._conditioning(inputs[side], side)
            if side == "positive" and "conditioning" in inputs:  # BasicGuider: there is no negative side
                return self._conditioning(inputs["conditioning"], side)
        return ("" if side == "negative" else None), None

    def _conditioning(self, value: object, side: str) -> tuple[str | None, str | None]:
        """Follow conditioning back to its text."""
        seen: set[tuple[str, object]] = set()
        while (key := self.source(value)) is not None and isinstance(value, list) and (key, value[1]) not in seen:
            if not isinstance(value[1], int):
                break
            seen.add((key, value[1]))
            node = self.nodes[key]
            if node.kind == NO_TEXT:
                return "", key
            if {"positive", "negative"} <= node.inputs.keys():
                linked = self.source(node.inputs["positive"]) is not None
                side = ("positive", "negative")[value[1]] if linked and value[1] in (0, 1) else side
                value = node.inputs[side]
                if isinstance(value, str):
                    return value, key
                continue
            text = self.text(value)
            if text is not None:
                return text, key
            names = [name for name in node.inputs if name.startswith("conditioning")] or [side]
            value = node.inputs.get(names[0])
        return None, None

    def text(self, value: object) -> str | None:
        """Return the text that an input holds or is linked to; texts that a node joins are joined."""
        return self._text(value, [MAX_LINKS])

    def _text(self, value: object, left: list[int]) -> str | None:
        """Return the same; `left` counts down the links that may still be followed."""
        if isinstance(value, str):
            return value
        key = self.source(value)
        left[0] -= 1
        if key is None or left[0] < 0:
            return None
        inputs = self.nodes[key].inputs
        sides = [next((name for name in names if name in inputs), None) for names in JOINS]
        if all(sides):
            parts = [self._text(inputs[name], left) for name in sides if name]
            between = inputs.get("delimiter")
            whole = (between if isinstance(between, str) else "").join(part for part in parts if part is not None)
            return None if None in parts else whole[:MAX_TEXT]
        texts = (self._text(inputs[name], left) for name in TEXTS if name in inputs)
        return next((text for text in texts if text is not None), None)


def graph_of(values: Mapping[str, Any]) -> ComfyGraph:
    """Return the graph in a JSON object; what is no node is left out."""
    return ComfyGraph(
        {
            key: Node(str(node["class_type"])[:100], node["inputs"])
            for key, node in list(values.items())[:MAX_NODES]
            if isinstance(node, dict) and "class_type" in node and isinstance(node.get("inputs"), dict)
        }
    )
