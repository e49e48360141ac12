"""The parameters of an A1111 text, under this package's names; Forge and many others write the same text.

Reference: github.com/AUTOMATIC1111/stable-diffusion-webui, modules/processing.py and modules/infotext_utils.py.
"""

import re
from typing import Any

from latent_diffusion.provenance.infotext import CONTENTS, EMPHASIS, UPSCALERS, read_infotext
from latent_diffusion.provenance.json_fields import known, read_float, read_int
from latent_diffusion.provenance.other_names import sampling_of

__all__ = ["read_a1111"]

OF_MASK = ("Mask mode", "Mask blur", "Mask blur X", "Mask blur Y", "Masked content", "Inpaint area")
"""Fields that only inpainting has."""
_REFINER = re.compile(r"(.*?)(?: \[([0-9a-fA-F]{6,64})\])?")  # name [hash]


def read_a1111(text: str) -> tuple[str, str, dict[str, Any], dict[str, str], str] | None:
    """Return prompt, negative prompt, options, other fields and the task; None where the text is none of this kind."""
    info = read_infotext(text)
    if info is None:
        return None
    fields = dict(info.fields)
    masked = any(name in fields for name in OF_MASK)
    width, _, height = fields.pop("Size", "").partition("x")
    spacing = fields.pop("Schedule type", "")
    spacing = {"Beta": "beta_sigma"}.get(spacing, spacing)  # "beta" is ComfyUI's and ours
    sampling = sampling_of(fields.pop("Sampler", ""), spacing)
    values: dict[str, Any] = {
        **sampling,
        "spacing": sampling["spacing"] or "Automatic",
        "num_inference_steps": read_int(fields.pop("Steps", None)),
        "guidance_scale": read_float(fields.pop("CFG scale", None)),
        "seed": read_int(fields.pop("Seed", None)),
        "width": read_int(width),
        "height": read_int(height),
        "model": fields.pop("Model", None),
        "model_hash": fields.pop("Model hash", None),
        "strength": read_float(fields.pop("Denoising strength", None)),
        "variation_seed": read_int(fields.pop("Variation seed", None)),
        "variation_strength": read_float(fields.pop("Variation seed strength", None)),
        "eta": read_float(fields.pop("Eta", None)),
        "emphasis": _EMPHASES.get(fields.pop("Emphasis", ""), "a1111"),
        "noise": fields.pop("RNG", "GPU"),
        "upscaler": _UPSCALERS.get(fields.get("Hires upscaler", "")),
        "padding": read_int(fields.pop("Masked area padding", None)),
        "masked_content": _CONTENTS.get(fields.pop("Masked content", "")),
        "inpaint_area": "masked" if fields.pop("Inpaint area", "") == "Only masked" else None,
    }
    if values["upscaler"]:
        fields.pop("Hires upscaler")
    if refined := _REFINER.fullmatch(fields.pop("Refiner", "")):
        values["refiner"] = refined.group(1)
        values["refiner_switch"] = read_float(fields.pop("Refiner switch at", None))
    skip = read_int(fields.pop("Clip skip", None))
    if skip and skip > 1:
        values["clip_skip"] = skip - 1  # A1111 counts from 1, diffusers from 0
    hires = _hires(fields, values)
    strength = values["strength"]
    task = "hires" if hires else "inpaint" if masked else "text_to_image"
    if task == "text_to_image" and strength is not None:
        task = "image_to_image"  # a picture from text alone has the field only with hires
    return info.prompt, info.negative_prompt, known(values | hires), fields, task


def _hires(fields: dict[str, str], values: dict[str, Any]) -> dict[str, Any]:
    """Return how a second pass was done, by "Hires upscale: 2" or "Hires resize: 1024x1024"; nothing without one."""
    steps = read_int(fields.pop("Hires steps", None))
    factor = read_float(fields.pop("Hires upscale", None))
    if factor is not None:
        return {"hires_scale": factor, "hires_steps": steps}
    resize = fields.pop("Hires resize", None)
    if resize is None:
        return {}
    larger = [read_int(part) or 0 for part in resize.split("x")]
    small = [values.get("width") or 0, values.get("height") or 0]
    if len(larger) != 2 or not all(small) or not any(larger):
        fields["Hires resize"] = resize
        return {}
    scales = [new / old for new, old in zip(larger, small, strict=True) if new]
    if max(scales) - min(scales) > 8 / min(small):  # sides are multiples of 8
        fields["Hires resize"] = f"{resize} cuts off what is over; here nothing is cut off"
    return {"hires_scale": max(scales), "hires_steps": steps}


_EMPHASES = {name: ours for ours, name in EMPHASIS.items()}
_UPSCALERS = {name: ours for ours, name in UPSCALERS.items()}
_CONTENTS = {name: ours for ours, name in CONTENTS.items()}
