"""The metadata that other tools write into a picture: A1111, ComfyUI, InvokeAI, NovelAI, Fooocus, SwarmUI.

A tool's fields that have a counterpart here become options of the pipeline, the others are kept as they are written.
The texts are untrusted: every size is bounded, nothing in them is looked up, opened or run.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from latent_diffusion.provenance.a1111 import read_a1111
from latent_diffusion.provenance.comfyui import read_comfyui
from latent_diffusion.provenance.json_fields import no_numbers, read_object
from latent_diffusion.provenance.json_tools import (
    Parts,
    read_fooocus,
    read_invokeai,
    read_invokeai_1,
    read_invokeai_2,
    read_novelai,
    read_swarmui,
)

__all__ = ["Found", "read_found"]

MAX_CHARACTERS = 4_000_000  # of a text; a ComfyUI graph has some 100 000


@dataclass(frozen=True)
class Found:
    """The content of a picture's texts."""

    tool: str
    prompt: str
    negative_prompt: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)  # under the names of our records
    other: Mapping[str, str] = field(default_factory=dict)  # what has no counterpart here
    loras: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # file -> on U-Net and text encoders
    task: str = "text_to_image"  # or "image_to_image", "inpaint", "hires"


def read_found(chunks: Mapping[str, str], parameters: str | None) -> Found | None:
    """Return what another tool wrote, or None where nothing of that kind can be read.

    Args:
        chunks: the texts of a picture by their keys.
        parameters: A1111's text, from wherever the format keeps it.
    """
    texts = {key: text for key, text in chunks.items() if len(text) <= MAX_CHARACTERS}
    if found := _comfyui(read_object(texts.get("prompt", ""))):
        return found
    for key, tool, read in READERS:
        if key in texts and (values := read_object(texts[key])) is not None and (found := read(values, texts)):
            return _with_task(tool, *found, values)
    if "Dream" in texts and (found := read_invokeai_1(texts["Dream"])):
        return _with_task("InvokeAI", *found, {})
    if parameters is None or len(parameters) > MAX_CHARACTERS:
        return None
    if (values := read_object(parameters)) is not None:
        graph = values.get("prompt")  # what saves JPEG for ComfyUI keeps the graph in the comment
        if found := _comfyui(read_object(graph) if isinstance(graph, str) else graph):
            return found
        for tool, read in (("SwarmUI", read_swarmui), ("Fooocus", read_fooocus)):
            if found := read(values, texts):
                return _with_task(tool, *found, values)
        return None
    found = read_a1111(parameters)
    if found is None:
        return None
    prompt, negative_prompt, options, other, task = found
    tool = "Fooocus" if "fooocus_scheme" in texts else "A1111"
    return Found(tool, prompt, negative_prompt, options, other, task=task)


def _comfyui(graph: object) -> Found | None:
    picture = read_comfyui(graph) if isinstance(graph, dict) else None
    if picture is None:
        return None
    return Found(
        "ComfyUI",
        picture.prompt,
        picture.negative_prompt,
        picture.options,
        picture.other | _named(graph),
        loras=picture.loras,
        task=picture.task,
    )


def _with_task(
    tool: str, prompt: str, negative_prompt: str, options: dict[str, Any], other: dict[str, str], values: dict[str, Any]
) -> Found:
    strength = options.get("strength")
    task = "image_to_image" if strength is not None and strength < 1.0 else "text_to_image"
    return Found(tool, prompt, negative_prompt, options, other | _named(values), task=task)


def _named(values: object) -> dict[str, str]:
    """Return the fields of a file's JSON whose number is not finite, which no option takes."""
    found = no_numbers(values)
    return {"not finite, left out": found} if found else {}


READERS: tuple[tuple[str, str, Callable[[dict[str, Any], Mapping[str, str]], Parts | None]], ...] = (
    ("invokeai_metadata", "InvokeAI", read_invokeai),
    ("sd-metadata", "InvokeAI", read_invokeai_2),
    ("Comment", "NovelAI", read_novelai),
)
"""Key of the text, the tool, and what reads it."""
