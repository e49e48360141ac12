"""What a ComfyUI graph drew with: the values nearest to the sampler that made the picture.

A graph is {id: {"class_type": ..., "inputs": {name: value or [id, output]}}}. Anyone may add kinds of nodes, so kinds
are not looked at, but names of inputs are: `seed`, `steps`, `cfg`, `positive`. Going against the links from
the sampler, the first that has the name tells it.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["Graph", "read_graph"]

MAX_NODES = 5000
ENDS = ("SaveImage", "PreviewImage")
OPTIONS = {
    "seed": "seed",
    "noise_seed": "seed",
    "steps": "num_inference_steps",
    "cfg": "guidance_scale",
    "denoise": "strength",
    "width": "width",
    "height": "height",
    "ckpt_name": "model",
    "unet_name": "model",
}
"""Name of an input -> ours."""
TEXTS = ("text", "text_g", "text_l", "prompt", "string", "value")  # inputs that hold a prompt


@dataclass(frozen=True)
class Graph:
    """What a graph says of the picture."""

    prompt: str
    negative_prompt: str
    sampler: str
    scheduler: str
    options: dict[str, Any]
    other: dict[str, str]


@dataclass(frozen=True)
class _Node:
    kind: str
    inputs: dict[str, Any]


def read_graph(values: dict[str, Any]) -> Graph | None:
    """Return what the graph says, or None where it is none or holds no sampler."""
    nodes = {
        key: _Node(str(node["class_type"])[:100], node["inputs"])
        for key, node in list(values.items())[:MAX_NODES]
        if isinstance(node, dict) and "class_type" in node and isinstance(node.get("inputs"), dict)
    }
    ends = [key for key, node in nodes.items() if node.kind.startswith(ENDS)] or list(nodes)[-1:]
    behind = list(_upstream(nodes, ends))
    sampler = next((key for key in behind if _is_sampler(nodes[key])), None)
    if sampler is None:
        return None
    options: dict[str, Any] = {}
    found: dict[str, str] = {}
    other: dict[str, str] = {}
    for key in _upstream(nodes, [sampler]):
        for name, value in nodes[key].inputs.items():
            if isinstance(value, list | dict) or value is None:
                continue
            if name in OPTIONS:
                options.setdefault(OPTIONS[name], value)
            elif name in ("sampler_name", "scheduler"):
                found.setdefault(name, str(value)[:100])
            elif name == "lora_name":
                other[f"LoRA {str(value)[:200]}"] = str(nodes[key].inputs.get("strength_model", 1))[:20]
    count = sum(_is_sampler(nodes[key]) for key in behind)
    if count > 1:
        other["samplers"] = f"{count}; the last is described"
    prompts = [_text(nodes, sampler, side) for side in ("positive", "negative")]
    return Graph(prompts[0], prompts[1], found.get("sampler_name", ""), found.get("scheduler", ""), options, other)


def _is_sampler(node: _Node) -> bool:
    return {"steps", "positive"} <= node.inputs.keys() or node.kind.startswith("SamplerCustom")


def _upstream(nodes: dict[str, _Node], starts: list[str]) -> Iterator[str]:
    """Yield the nodes that `starts` depend on, nearest first, each once."""
    waiting, seen = deque(starts), set(starts)
    while waiting:
        key = waiting.popleft()
        yield key
        for value in nodes[key].inputs.values():
            source = _link(nodes, value)
            if source is not None and source not in seen:
                seen.add(source)
                waiting.append(source)


def _link(nodes: dict[str, _Node], value: object) -> str | None:
    linked = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int) and str(value[0]) in nodes
    return str(value[0]) if linked and isinstance(value, list) else None


def _text(nodes: dict[str, _Node], sampler: str, side: str) -> str:
    """Return the nearest text behind the input `side` of the nearest node that has one."""
    for key in _upstream(nodes, [sampler]):
        start = _link(nodes, nodes[key].inputs.get(side))
        if start is None:
            continue
        for behind in _upstream(nodes, [start]):
            texts = [nodes[behind].inputs.get(name) for name in TEXTS]
            text = next((text for text in texts if isinstance(text, str)), None)
            if text is not None:
                return text
    return ""
