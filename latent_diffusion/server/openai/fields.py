"""The fields of `/v1/images/*`, and their translation onto the native request.

Numbers of a form arrive as text and are read as numbers. The fields of diffusion that OpenAI does not have are accepted
beside its own (`extra_body` of its client): negative_prompt, seed, steps, guidance_scale, sampler, strength.
Reference: github.com/openai/openai-python, src/openai/types/image_generate_params.py and image_edit_params.py.
"""

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from latent_diffusion.checks import MAX_SEED
from latent_diffusion.pipeline.call.settings import Defaults
from latent_diffusion.server.drawing.shelf import Shelf
from latent_diffusion.server.limits import MAX_STEPS
from latent_diffusion.server.refusals import Refusal

__all__ = ["Fields", "native"]

QUALITIES = {"low": 0.5, "medium": 1.0, "high": 1.5, "standard": 1.0, "hd": 1.5, "xhigh": 2.0, "max": 2.0}
"""Steps, as multiples of the model's own."""
_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")


class Fields(BaseModel):
    """What `/generations`, `/edits` and `/variations` have in common; unknown fields are named in the answer."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    prompt: str = Field("", max_length=32_000)
    model: str | None = None
    n: int | None = Field(None, ge=1, le=10)
    size: str | None = None
    quality: str | None = None
    background: str | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: int | None = Field(None, ge=0, le=100)
    response_format: Literal["b64_json", "url"] | None = None
    stream: bool | None = None
    partial_images: int | None = Field(None, ge=0, le=3)
    negative_prompt: str | None = None
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    steps: int | None = Field(None, ge=1, le=MAX_STEPS)
    num_inference_steps: int | None = Field(None, ge=1, le=MAX_STEPS)
    guidance_scale: float | None = None
    sampler: str | None = None
    strength: float | None = None
    mask_mode: Literal["alpha", "luminance"] = "alpha"

    @property
    def form(self) -> str:
        """Format of the pictures, as Pillow names it."""
        return (self.output_format or "png").upper()


def native(fields: Fields, shelf: Shelf, *, task: str) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of the native request, and lines about those that are not followed.

    Raises:
        Refusal: a value that cannot be followed and that a client must not believe to be.
    """
    ignored = [f"{name}: {str(value)[:60]}" for name, value in (fields.model_extra or {}).items()]
    if fields.background == "transparent":
        raise Refusal(400, "background 'transparent' cannot be drawn; use opaque or auto", "background")
    values: dict[str, Any] = {"task": task, "prompt": fields.prompt, "num_images": fields.n or 1}
    for name in ("negative_prompt", "seed", "guidance_scale", "sampler"):
        values[name] = getattr(fields, name)
    if fields.model is not None:
        try:
            values["model"] = shelf.find(fields.model)
        except Refusal:
            ignored.append(f"model: {fields.model[:60]}; drawn with {shelf.name}")
    values |= _size(fields.size)
    values["num_inference_steps"] = fields.steps or fields.num_inference_steps or _steps(fields, shelf.pipe.defaults)
    if task != "text_to_image":
        values["strength"] = fields.strength
    elif fields.strength is not None:
        ignored.append(f"strength: {fields.strength:g}")
    return {name: value for name, value in values.items() if value is not None}, ignored


def _steps(fields: Fields, defaults: Defaults) -> int | None:
    if fields.quality in (None, "auto"):
        return None
    if fields.quality not in QUALITIES:
        raise Refusal(400, f"quality {fields.quality!r:.30}; there are auto, {', '.join(QUALITIES)}", "quality")
    return max(1, min(round(QUALITIES[fields.quality] * defaults.num_inference_steps), MAX_STEPS))


def _size(text: str | None) -> dict[str, int]:
    if text is None or text == "auto":
        return {}
    found = _SIZE.fullmatch(text)
    if found is None:
        raise Refusal(400, f"size {text!r:.30} is not auto or WIDTHxHEIGHT, such as 512x512", "size")
    return {"width": int(found[1]), "height": int(found[2])}
