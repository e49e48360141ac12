"""What other tools wrote into a picture, in our words: A1111, ComfyUI, InvokeAI, NovelAI, Fooocus.

A tool's fields that have a counterpart here become options of the pipeline, the others are kept as they are written.
The texts come from strangers: every size is bounded, nothing in them is looked up, opened or run.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from latent_diffusion.provenance.comfy_graph import read_graph
from latent_diffusion.provenance.infotext import CONTENTS, EMPHASIS, UPSCALERS, read_infotext
from latent_diffusion.provenance.other_names import sampler_of

__all__ = ["Found", "read_found"]

MAX_CHARACTERS = 4_000_000  # of a text; a ComfyUI graph has some 100 000
MAX_FIELDS = 300


@dataclass(frozen=True)
class Found:
    """What a picture says of itself."""

    tool: str
    prompt: str
    negative_prompt: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)  # under the names of our records
    other: Mapping[str, str] = field(default_factory=dict)  # what has no counterpart here


def read_found(chunks: Mapping[str, str], parameters: str | None) -> Found | None:
    """Return what another tool wrote, or None where nothing of that kind can be read.

    Args:
        chunks: the texts of a PNG by their keys.
        parameters: A1111's text, from wherever the format keeps it.
    """
    texts = {key: text for key, text in chunks.items() if len(text) <= MAX_CHARACTERS}
    for key, tool, read in READERS:
        if key in texts and (values := _object(texts[key])) is not None and (found := read(values, texts)):
            return Found(tool, *found)
    if parameters is None or len(parameters) > MAX_CHARACTERS:
        return None
    if (values := _object(parameters)) is not None:
        return Found("Fooocus", *_fooocus(values, texts))
    found = _a1111(parameters)
    return found and Found("Fooocus" if "fooocus_scheme" in texts else "A1111", *found)


Parts = tuple[str, str, dict[str, Any], dict[str, str]]


def _a1111(text: str) -> Parts | None:
    info = read_infotext(text)
    if info is None:
        return None
    fields = dict(info.fields)
    width, _, height = fields.pop("Size", "").partition("x")
    spacing = fields.pop("Schedule type", "")
    spacing = {"Beta": "beta_sigma"}.get(spacing, spacing)  # "beta" is ComfyUI's and ours
    sampling = _sampling(fields.pop("Sampler", ""), spacing)
    values: dict[str, Any] = {
        **sampling,
        "spacing": sampling["spacing"] or "Automatic",
        "num_inference_steps": _int(fields.pop("Steps", None)),
        "guidance_scale": _float(fields.pop("CFG scale", None)),
        "seed": _int(fields.pop("Seed", None)),
        "width": _int(width),
        "height": _int(height),
        "model": fields.pop("Model", None),
        "model_hash": fields.pop("Model hash", None),
        "strength": _float(fields.pop("Denoising strength", None)),
        "variation_seed": _int(fields.pop("Variation seed", None)),
        "variation_strength": _float(fields.pop("Variation seed strength", None)),
        "eta": _float(fields.pop("Eta", None)),
        "emphasis": {name: ours for ours, name in EMPHASIS.items()}.get(fields.pop("Emphasis", ""), "a1111"),
        "noise": fields.pop("RNG", "GPU"),
        "hires_scale": _float(fields.pop("Hires upscale", None)),
        "hires_steps": _int(fields.pop("Hires steps", None)),
        "upscaler": {name: ours for ours, name in UPSCALERS.items()}.get(fields.get("Hires upscaler", "")),
        "padding": _int(fields.pop("Masked area padding", None)),
        "masked_content": {name: ours for ours, name in CONTENTS.items()}.get(fields.pop("Masked content", "")),
        "inpaint_area": "masked" if fields.pop("Inpaint area", "") == "Only masked" else None,
    }
    if values["upscaler"]:
        fields.pop("Hires upscaler")
    skip = _int(fields.pop("Clip skip", None))
    if skip and skip > 1:
        values["clip_skip"] = skip - 1  # A1111 counts from 1, diffusers from 0
    return info.prompt, info.negative_prompt, _known(values), fields


def _comfyui(values: dict[str, Any], _: Mapping[str, str]) -> Parts | None:
    graph = read_graph(values)
    if graph is None:
        return None
    options = _known({**graph.options, **_sampling(graph.sampler, graph.scheduler), "emphasis": "comfy"})
    return graph.prompt, graph.negative_prompt, options, graph.other


def _invokeai(values: dict[str, Any], _: Mapping[str, str]) -> Parts:
    values = dict(values)
    model = values.pop("model", None)
    name = model.get("name", model.get("model_name")) if isinstance(model, dict) else model
    options = _known(
        {
            **_sampling(str(values.pop("scheduler", "")), ""),
            "num_inference_steps": _int(values.pop("steps", None)),
            "guidance_scale": _float(values.pop("cfg_scale", None)),
            "guidance_rescale": _float(values.pop("cfg_rescale_multiplier", None)),
            "seed": _int(values.pop("seed", None)),
            "width": _int(values.pop("width", None)),
            "height": _int(values.pop("height", None)),
            "strength": _float(values.pop("strength", None)),
            "clip_skip": _int(values.pop("clip_skip", None)) or None,
            "model": name,
        }
    )
    prompts = [str(values.pop(key, None) or "") for key in ("positive_prompt", "negative_prompt")]
    return prompts[0], prompts[1], options, _written(values)


def _novelai(values: dict[str, Any], texts: Mapping[str, str]) -> Parts | None:
    if "NovelAI" not in texts.get("Software", "") and "uc" not in values:
        return None  # "Comment" is a key that many use
    values = dict(values)
    options = _known(
        {
            **_sampling(str(values.pop("sampler", "")).removeprefix("k_"), str(values.pop("noise_schedule", ""))),
            "num_inference_steps": _int(values.pop("steps", None)),
            "guidance_scale": _float(values.pop("scale", None)),
            "guidance_rescale": _float(values.pop("cfg_rescale", None)),
            "seed": _int(values.pop("seed", None)),
            "width": _int(values.pop("width", None)),
            "height": _int(values.pop("height", None)),
            "strength": _float(values.pop("strength", None)),
            "model": texts.get("Source"),
        }
    )
    prompt = str(values.pop("prompt", None) or texts.get("Description", ""))
    return prompt, str(values.pop("uc", None) or ""), options, _written(values)


def _fooocus(values: dict[str, Any], _: Mapping[str, str]) -> Parts:
    values = dict(values)
    numbers = [_int(part) for part in str(values.pop("resolution", "")).strip("()[] ").split(",")[:2]]
    width, height = (*numbers, None, None)[:2]
    options = _known(
        {
            **_sampling(str(values.pop("sampler", "")), str(values.pop("scheduler", ""))),
            "num_inference_steps": _int(values.pop("steps", None)),
            "guidance_scale": _float(values.pop("guidance_scale", None)),
            "seed": _int(values.pop("seed", None)),
            "width": width,
            "height": height,
            "model": values.pop("base_model", None),
            "model_hash": values.pop("base_model_hash", None),
            "emphasis": "comfy",
        }
    )
    full = [values.pop(f"full_{key}", None) for key in ("prompt", "negative_prompt")]
    plain = [values.pop(key, None) for key in ("prompt", "negative_prompt")]
    prompts = [
        "\n".join(map(str, whole)) if isinstance(whole, list) else str(short or "")
        for whole, short in zip(full, plain, strict=True)
    ]
    return prompts[0], prompts[1], options, _written(values)


READERS: tuple[tuple[str, str, Callable[[dict[str, Any], Mapping[str, str]], Parts | None]], ...] = (
    ("invokeai_metadata", "InvokeAI", _invokeai),
    ("prompt", "ComfyUI", _comfyui),
    ("Comment", "NovelAI", _novelai),
)
"""Key of the text, the tool, and what reads it."""


def _sampling(sampler: str, spacing: str) -> dict[str, Any]:
    """Return sampler and spacing; a name that we do not have stays as it is, for the pipeline to refuse."""
    found = sampler_of(sampler)
    ours, implied = found or (sampler, None)
    return {"sampler": ours, "spacing": spacing or implied}


def _object(text: str) -> dict[str, Any] | None:
    """Return a JSON object, or None for anything else."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _known(values: dict[str, Any]) -> dict[str, Any]:
    """Return what was found, texts cut to a length that is no prompt's."""
    return {key: value[:300] if isinstance(value, str) else value for key, value in values.items() if _is_value(value)}


def _is_value(value: object) -> bool:
    return isinstance(value, str | int | float) and value != ""


def _written(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the rest as texts."""
    some = list(values.items())[:MAX_FIELDS]
    return {
        str(key)[:100]: (value if isinstance(value, str) else json.dumps(value))[:2000]
        for key, value in some
        if value not in (None, "", [], {})
    }


def _int(value: object) -> int | None:
    number = _float(value)
    return int(number) if number is not None and number.is_integer() else None


def _float(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str) or len(str(value)[:41]) > 40:
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
