"""Tools that write JSON of named fields: InvokeAI, NovelAI, Fooocus, SwarmUI.

Each reader returns prompt, negative prompt, options under the names of our records, and the fields without counterpart.
"""

import re
from collections.abc import Mapping
from typing import Any

from latent_diffusion.provenance.json_fields import known, read_float, read_int, written
from latent_diffusion.provenance.other_names import sampling_of

__all__ = [
    "Parts",
    "read_fooocus",
    "read_invokeai",
    "read_invokeai_1",
    "read_invokeai_2",
    "read_novelai",
    "read_swarmui",
]

Parts = tuple[str, str, dict[str, Any], dict[str, str]]


def read_invokeai(values: dict[str, Any], _: Mapping[str, str]) -> Parts:
    """Read `invokeai_metadata`, which InvokeAI 3 and later write."""
    values = dict(values)
    device = values.pop("rand_device", "cpu")
    model = values.pop("model", None)
    name = model.get("name", model.get("model_name")) if isinstance(model, dict) else model
    options = known(
        {
            **sampling_of(str(values.pop("scheduler", "")), ""),
            "num_inference_steps": read_int(values.pop("steps", None)),
            "guidance_scale": read_float(values.pop("cfg_scale", None)),
            "guidance_rescale": read_float(values.pop("cfg_rescale_multiplier", None)),
            "seed": read_int(values.pop("seed", None)),
            "width": read_int(values.pop("width", None)),
            "height": read_int(values.pop("height", None)),
            "strength": read_float(values.pop("strength", None)),
            "clip_skip": read_int(values.pop("clip_skip", None)) or None,
            "model": name,
            "noise": None if device == "cpu" else str(device),
        }
    )
    prompts = [str(values.pop(key, None) or "") for key in ("positive_prompt", "negative_prompt")]
    return prompts[0], prompts[1], options, written(values)


def read_novelai(values: dict[str, Any], texts: Mapping[str, str]) -> Parts | None:
    """Read the JSON in `Comment`."""
    if "NovelAI" not in texts.get("Software", "") and "uc" not in values:
        return None  # "Comment" is a key that many use
    values = dict(values)
    options = known(
        {
            **sampling_of(str(values.pop("sampler", "")).removeprefix("k_"), str(values.pop("noise_schedule", ""))),
            "num_inference_steps": read_int(values.pop("steps", None)),
            "guidance_scale": read_float(values.pop("scale", None)),
            "guidance_rescale": read_float(values.pop("cfg_rescale", None)),
            "seed": read_int(values.pop("seed", None)),
            "width": read_int(values.pop("width", None)),
            "height": read_int(values.pop("height", None)),
            "strength": read_float(values.pop("strength", None)),
            "model": texts.get("Source"),
        }
    )
    prompt = str(values.pop("prompt", None) or texts.get("Description", ""))
    return prompt, str(values.pop("uc", None) or ""), options, written(values)


def read_fooocus(values: dict[str, Any], texts: Mapping[str, str]) -> Parts | None:
    """Read Fooocus' own scheme; JSON of others, which carry none of its marks, is not read."""
    named = str(values.get("version", "")) + texts.get("Software", "")
    if not ("metadata_scheme" in values or "fooocus_scheme" in texts or "Fooocus" in named) or "RuinedFooocus" in str(
        values.get("software", "")
    ):
        return None
    values = dict(values)
    values.pop("metadata_scheme", None)
    numbers = [read_int(part) for part in str(values.pop("resolution", "")).strip("()[] ").split(",")[:2]]
    width, height = (*numbers, None, None)[:2]
    options = known(
        {
            **sampling_of(str(values.pop("sampler", "")), str(values.pop("scheduler", ""))),
            "num_inference_steps": read_int(values.pop("steps", None)),
            "guidance_scale": read_float(values.pop("guidance_scale", None)),
            "seed": read_int(values.pop("seed", None)),
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
    return prompts[0], prompts[1], options, written(values)


def read_invokeai_1(text: str) -> Parts | None:
    """Read `Dream`, the command line that InvokeAI 1 wrote: "a cat" -s 50 -S 123 -W 512 -H 512 -C 7.5 -A k_lms."""
    quoted = re.match(r'\s*"((?:[^"\\]|\\.)*)"(.*)', text, re.DOTALL)
    if quoted is None:
        return None
    words = {}
    for part in re.split(r"\s+(?=-)", quoted.group(2).strip())[:100]:
        found = re.fullmatch(r"--?([A-Za-z_]+)[=\s]*(.*)", part, re.DOTALL)
        if found:
            words[found.group(1)] = found.group(2).strip()
    prompt, negative = _without_negative(quoted.group(1).replace('\\"', '"'))
    options = known(
        {
            **sampling_of(words.pop("A", ""), ""),
            "num_inference_steps": read_int(words.pop("s", None)),
            "guidance_scale": read_float(words.pop("C", None)),
            "seed": read_int(words.pop("S", None)),
            "width": read_int(words.pop("W", None)),
            "height": read_int(words.pop("H", None)),
            "strength": read_float(words.pop("f", None)) if "I" in words else None,
        }
    )
    return prompt, negative, options, written(words)


def _without_negative(text: str) -> tuple[str, str]:
    """Return a prompt of InvokeAI 1 and 2 and its negative prompt, which stands in square brackets within it."""
    negative = " ".join(re.findall(r"\[([^\[\]]*)\]", text))
    return re.sub(r"\[[^\[\]]*\]", "", text).strip(), negative


def read_invokeai_2(values: dict[str, Any], _: Mapping[str, str]) -> Parts | None:
    """Read `sd-metadata`, which InvokeAI 2 wrote: the fields are those of `image`."""
    image = values.get("image")
    if not isinstance(image, dict):
        return None
    image = dict(image)
    prompt = image.pop("prompt", None)
    if isinstance(prompt, list):  # one per part of a weighted prompt
        prompt = " ".join(str(part.get("prompt", "")) for part in prompt if isinstance(part, dict))
    prompt, negative = _without_negative(str(prompt or ""))
    options = known(
        {
            **sampling_of(str(image.pop("sampler", "")), ""),
            "num_inference_steps": read_int(image.pop("steps", None)),
            "guidance_scale": read_float(image.pop("cfg_scale", None)),
            "seed": read_int(image.pop("seed", None)),
            "width": read_int(image.pop("width", None)),
            "height": read_int(image.pop("height", None)),
            "strength": read_float(image.pop("strength", None)) if image.get("type") == "img2img" else None,
            "model": values.get("model_weights"),
        }
    )
    return prompt, negative, options, written(image)


def read_swarmui(values: dict[str, Any], _: Mapping[str, str]) -> Parts | None:
    """Read `sui_image_params`, which SwarmUI writes into `parameters`."""
    image = values.get("sui_image_params")
    if not isinstance(image, dict):
        return None
    image = dict(image)
    sampler = [str(image.pop(key, "")) for key in ("comfyuisampler", "sampler")]
    scheduler = [str(image.pop(key, "")) for key in ("comfyuischeduler", "scheduler")]
    options = known(
        {
            **sampling_of(sampler[0] or sampler[1], scheduler[0] or scheduler[1]),
            "num_inference_steps": read_int(image.pop("steps", None)),
            "guidance_scale": read_float(image.pop("cfgscale", None)),
            "seed": read_int(image.pop("seed", None)),
            "variation_seed": read_int(image.pop("variationseed", None)),
            "variation_strength": read_float(image.pop("variationseedstrength", None)),
            "width": read_int(image.pop("width", None)),
            "height": read_int(image.pop("height", None)),
            "model": image.pop("model", None),
            "strength": read_float(image.pop("initimagecreativity", None)),
            "emphasis": "comfy",
        }
    )
    prompts = [str(image.pop(key, None) or "") for key in ("prompt", "negativeprompt")]
    image.pop("aspectratio", None)
    image.pop("swarm_version", None)
    return prompts[0], prompts[1], options, written(image)
