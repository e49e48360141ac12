"""The A1111 web UI's text about a picture, which most tools read: written from a record, and read.

    a red apple
    Negative prompt: blurry
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x768, Model hash: ...

Values with a comma, a colon or a line break are JSON strings. Reference: github.com/AUTOMATIC1111/
stable-diffusion-webui, modules/infotext_utils.py and modules/processing.py (names and order of the fields).
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from latent_diffusion.prompts.terms import take_adapters
from latent_diffusion.provenance.other_names import a1111_name
from latent_diffusion.provenance.record import HiresRecord, InpaintRecord, Record

__all__ = ["CONTENTS", "EMPHASIS", "SPACINGS", "UPSCALERS", "Infotext", "read_infotext", "write_infotext"]

SPACINGS = {
    "linspace": "Uniform", "karras": "Karras", "exponential": "Exponential", "polyexponential": "Polyexponential",
    "sgm_uniform": "SGM Uniform", "kl_optimal": "KL Optimal", "ays_sd1": "Align Your Steps",
    "ays_sdxl": "Align Your Steps", "ays_sd1_a1111": "Align Your Steps", "ays_sdxl_a1111": "Align Your Steps",
    "kl_optimal_a1111": "KL Optimal", "ddim_uniform": "DDIM", "simple": "Simple", "beta_sigma": "Beta",
}  # fmt: skip
"""Our name -> A1111's "Schedule type"; others have none there, and "Uniform" is the nearest."""
CONTENTS = {"fill": "fill", "noise": "latent noise", "nothing": "latent nothing"}  # "original" is not written
UPSCALERS = {
    "latent": "Latent", "latent_bicubic": "Latent (bicubic)", "latent_nearest": "Latent (nearest)",
    "lanczos": "Lanczos",
}  # fmt: skip
EMPHASIS = {"no-norm": "No norm", "none": "None", "ignore": "Ignore", "comfy": "ComfyUI"}
"""Our name -> A1111's; "a1111" is "Original" there, and not written."""
NEGATIVE = "Negative prompt:"
FIRST_FIELD = "Steps: "
LEAST_FIELDS = 3  # a last line with fewer is part of the prompt
MAX_CHARACTERS = 1_000_000  # of a text that is read
_FIELD = re.compile(r'\s*(\w[\w \-/]{0,99}):\s*("(?:[^"\\]|\\.)*"|[^,]*)(?:,|$)')


@dataclass(frozen=True)
class Infotext:
    """The content of such a text; the fields as they are written."""

    prompt: str
    negative_prompt: str
    fields: dict[str, str]


def write_infotext(record: Record) -> str:
    """Return the text of a record."""
    lines = [(record.read_as or record.prompt or "") + _missing_tags(record)]
    if record.negative_prompt:
        lines.append(f"{NEGATIVE} {record.negative_prompt}")
    values: dict[str, Any] = {
        "Steps": record.num_inference_steps,
        "Sampler": a1111_name(record.sampler.partition(":")[0]),
        "Schedule type": SPACINGS.get(record.spacing, "Uniform"),
        "CFG scale": _number(record.guidance_scale),
        "Seed": record.seed,
        "Size": f"{record.work_width}x{record.work_height}",
    }
    if record.model_hash:
        values["Model hash"] = record.model_hash[:10]
    values["Model"] = record.model
    if record.variation_strength:  # a walk's first frame has other seeds and no share of them
        values["Variation seed"] = record.variation_seed
        values["Variation seed strength"] = _number(record.variation_strength)
    task = record.inpaint or record.image_to_image or record.hires
    if task:
        values["Denoising strength"] = _number(task.strength)
    if record.clip_skip and not record.open_clip:  # A1111 does not read it for Stable Diffusion 2 and SDXL
        values["Clip skip"] = record.clip_skip + 1  # it counts from 1, diffusers from 0
    values["RNG"] = "CPU"
    if record.eta:
        values["Eta"] = _number(record.eta)
    if record.vae:
        values |= {"VAE hash": record.vae_hash[:10]} if record.vae_hash else {}
        values["VAE"] = record.vae
    if record.inpaint:
        values |= _of_inpainting(record.inpaint)
    if record.hires:
        values |= _of_hires(record.hires)
    values |= _of_prompt(record)
    for kind, name in (("lora", "Lora hashes"), ("embedding", "TI hashes")):
        hashes = [f"{adapter.name}: {adapter.hash}" for adapter in record.adapters if adapter.kind == kind]
        if hashes:
            values[name] = ", ".join(hashes)
    values["Version"] = record.software
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in values.items()))
    return "\n".join(lines)


def _missing_tags(record: Record) -> str:
    """Return tags for the adapters that the prompt does not name itself: A1111 has no other form for them."""
    named = {tag.name for tag in take_adapters(record.prompt or "")[1]} if record.emphasis != "none" else set()
    tags = []
    for adapter in record.adapters:
        if adapter.kind == "lora" and adapter.name not in named:
            unet = adapter.strengths.get("unet", 1.0)
            text = adapter.strengths.get("text_encoder", unet)
            weights = _number(text) if text == unet else f"{_number(text)}:{_number(unet)}"
            tags.append(f" <lora:{adapter.name}:{weights}>")
    return "".join(tags)


def _of_prompt(record: Record) -> dict[str, Any]:
    """Return how weights count, and what was typed where another text was read (as sd-dynamic-prompts has it)."""
    values: dict[str, Any] = {}
    if record.emphasis in EMPHASIS and any(mark in (record.prompt or "") for mark in "()[]"):
        values["Emphasis"] = EMPHASIS[record.emphasis]
    if record.read_as is not None:
        values["Template"] = record.prompt
    return values


def _of_inpainting(task: InpaintRecord) -> dict[str, Any]:
    """Return the fields that A1111 has for inpainting; "Whole picture" is what it means by their absence."""
    values: dict[str, Any] = {}
    if task.masked_content in CONTENTS:
        values["Masked content"] = CONTENTS[task.masked_content]
    if task.inpaint_area != "whole":
        values["Inpaint area"] = "Only masked"
        if task.padding is not None:
            values["Masked area padding"] = task.padding
    return values


def _of_hires(task: HiresRecord) -> dict[str, Any]:
    return {
        "Hires upscale": _number(task.scale),
        "Hires steps": task.num_inference_steps,
        "Hires upscaler": UPSCALERS[task.upscaler],
    }


def read_infotext(text: str) -> Infotext | None:
    """Return the content of a text, or None if it is not such a text: its last line has fewer than three fields.

    Some tools write values with line breaks: what follows the last line that begins with "Steps: " belongs to it.
    """
    if len(text) > MAX_CHARACTERS:
        return None
    lines = text.strip().split("\n")
    begin = max((place for place, line in enumerate(lines) if line.startswith(FIRST_FIELD)), default=len(lines) - 1)
    fields = _fields(" ".join(lines[begin:]))
    lines = lines[:begin]
    if len(fields) < LEAST_FIELDS:
        return None
    prompts: list[list[str]] = [[], []]
    side = 0
    for line in map(str.strip, lines):
        if not side and line.startswith(NEGATIVE):
            side, line = 1, line.removeprefix(NEGATIVE).strip()
        prompts[side].append(line)
    return Infotext("\n".join(prompts[0]), "\n".join(prompts[1]), fields)


def _fields(line: str) -> dict[str, str]:
    """Return the fields of the last line; what is no field is passed over up to the next comma."""
    found: dict[str, str] = {}
    position = 0
    while position < len(line):
        match = _FIELD.match(line, position)
        if match:
            found[match.group(1)] = _unquoted(match.group(2).strip())
            position = match.end()
        else:
            comma = line.find(",", position)
            position = len(line) if comma < 0 else comma + 1
    return found


def _number(value: float) -> str:
    return f"{value:g}"


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text


def _unquoted(text: str) -> str:
    if len(text) < 2 or not (text.startswith('"') and text.endswith('"')):
        return text
    try:
        return str(json.loads(text, strict=False))
    except ValueError:
        return text
