"""What the server is asked to draw: the native request, whose fields are the options of the Python methods.

The fields are derived from `options/`, where each option is declared once with its meaning, its type and its default.
Options that name a file of this machine, or that only Python can give, are left out.
"""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ForwardRef, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from latent_diffusion.checks import MAX_SEED, SIZE_STEP, check_size
from latent_diffusion.options.call import Options
from latent_diffusion.options.option import Option, checked, declared
from latent_diffusion.options.tasks import (
    HiresOptions,
    ImageToImageOptions,
    InpaintOptions,
    OutpaintOptions,
)
from latent_diffusion.registry import nearest
from latent_diffusion.server.encoded import from_base64, from_bytes
from latent_diffusion.server.limits import MAX_IMAGES, MAX_INPUT_PIXELS, MAX_PIXELS, MAX_STEPS
from latent_diffusion.server.refusals import Refusal

__all__ = ["TASKS", "DrawFields", "Request", "check_area", "read_request"]

TASKS: dict[str, type] = {
    "text_to_image": Options,
    "hires": HiresOptions,
    "image_to_image": ImageToImageOptions,
    "inpaint": InpaintOptions,
    "outpaint": OutpaintOptions,
}
"""Methods of the pipeline and their options."""
LEFT_OUT = (
    "lora_folder", "seed", "variation_seed", "negative_prompt",  # the server's own, or declared below
    "refiner_switch", "aesthetic_score", "negative_aesthetic_score",  # of a second model
)  # fmt: skip
OF_FILES = ("autoguidance", "classifier", "noised_clip", "taesd")  # texts that name a file of this machine


class _Base(BaseModel):
    """What every request has besides the options."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    task: Literal["text_to_image", "hires", "image_to_image", "inpaint", "outpaint"] = "text_to_image"
    prompt: str = Field("", description="Text to draw.")
    negative_prompt: str = Field("", description="Text to steer away from.")
    model: str | None = Field(None, description="Name of a model of `GET /models`; null = the one in use.")
    num_images: int = Field(1, ge=1, le=MAX_IMAGES, description="Pictures to draw; picture k has seed + k.")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="Seed of the first picture; null draws one.")
    variation_seed: int | None = Field(None, ge=0, le=MAX_SEED, description="Second seed whose noise is blended in.")
    image: str | None = Field(None, description="Picture to start from: base64 of PNG, JPEG, WebP or BMP.")
    mask: str | None = Field(None, description="Mask for `inpaint`, of the picture's size: white is repainted.")

    @model_validator(mode="before")
    @classmethod
    def _only_known(cls, values: Any) -> Any:
        for name in values if isinstance(values, dict) else ():
            if name not in cls.model_fields:
                raise ValueError(f"unknown field {name!r:.60}{nearest(str(name), cls.model_fields)}")
        return values


def _json_type(option: Option) -> Any:
    """Return the type of an option as JSON holds it; an object of Python has a text form."""
    if isinstance(option.type, ForwardRef) or option.cli == list[str]:
        return str | list[str] | None
    return (option.cli if option.cli in (str, int) else option.type) | None


def _field(option: Option) -> Any:
    default = option.shown or option.default
    return Field(None, description=f"{option.help} Default: {default}.")


_EVERY = {option.name: option for kind in TASKS.values() for option in declared(kind)}
_make: Any = create_model  # its fields come from a dictionary, which its declaration has no form for
_WithOptions: Any = _make(
    "WithOptions",
    __base__=_Base,
    **{name: (_json_type(option), _field(option)) for name, option in _EVERY.items() if name not in LEFT_OUT},
)


class DrawFields(_WithOptions):
    """What to draw, and how: the options of the Python methods; null or left out = the default."""


@dataclass(frozen=True)
class Request:
    """A checked request: what to draw, with its pictures decoded."""

    task: str
    prompt: str
    negative_prompt: str
    num_images: int
    seed: int
    variation_seed: int | None
    options: Mapping[str, Any]  # of the pipeline's method, without those above
    model: str | None = None  # None = the one in use
    image: Image.Image | None = None
    mask: Image.Image | None = None

    @property
    def shape(self) -> str | None:
        """What must be equal for two requests to be drawn together; None = alone."""
        if self.task != "text_to_image":
            return None
        return json.dumps([self.model, self.options], sort_keys=True)

    def arguments(self, picture: int) -> dict[str, Any]:
        """Return what picture number `picture` of the request has for itself."""
        varied = bool(self.options.get("variation_strength"))
        own = {"prompt": self.prompt, "negative_prompt": self.negative_prompt}
        if varied:  # of all pictures; only the other seed counts up
            return own | {"seed": self.seed, "variation_seed": (self.variation_seed or 0) + picture}
        return own | {"seed": self.seed + picture}


def read_request(
    given: Mapping[str, Any], image: Image.Image | None = None, mask: Image.Image | None = None
) -> Request:
    """Return the request that the fields of `DrawFields` describe.

    Args:
        given: the fields.
        image: the picture, where `given` does not have it.
        mask: the mask, likewise.

    Raises:
        ValidationError: an unknown field, or a value of another type.
        ConfigError: a value that cannot be.
        Refusal: fields that do not fit together, a picture that cannot be read, or a limit that is passed.
    """
    values = DrawFields.model_validate(given).model_dump(exclude_none=True, exclude_unset=True)
    task, prompt = values.pop("task", "text_to_image"), values.pop("prompt", "")
    negative, count = values.pop("negative_prompt", ""), values.pop("num_images", 1)
    model, seed, variation = values.pop("model", None), values.pop("seed", None), values.pop("variation_seed", None)
    pictures = {}
    for name, picture in (("image", image), ("mask", mask)):
        text = values.pop(name, None)
        pictures[name] = picture if text is None else from_bytes(from_base64(text, name), name)
    _check_pictures(task, values, pictures)
    known = {option.name for option in declared(TASKS[task])}
    for name in values:
        if name not in known:
            raise Refusal(400, f"{name} is no option of {task}; leave it out", name)
    checked(TASKS[task])(**values)
    _check_files(values)
    _check_limits(values, pictures["image"])
    varied = bool(values.get("variation_strength"))
    if variation is not None and not varied:
        raise Refusal(400, "variation_seed without variation_strength changes nothing; give a strength above 0")
    return Request(
        task, prompt, negative, count,
        seed=_seed("seed", seed, 1 if varied else count),
        variation_seed=_seed("variation_seed", variation, count) if varied else None,
        options=values, model=model, **pictures,
    )  # fmt: skip


def _seed(name: str, seed: int | None, count: int) -> int:
    if seed is None:
        return secrets.randbelow(MAX_SEED - count + 2)
    if seed > MAX_SEED - count + 1:
        raise Refusal(400, f"{name} {seed} is out of range for {count} pictures; use 0 to {MAX_SEED - count + 1}", name)
    return seed


def _check_pictures(task: str, values: Mapping[str, Any], pictures: Mapping[str, Any]) -> None:
    """Refuse a picture that is missing, or that the task has no use for."""
    needs = {"image_to_image": {"image"}, "outpaint": {"image"}, "inpaint": {"image", "mask"}}.get(task, set())
    if values.get("mask_channel") == "alpha" and pictures["mask"] is None:
        needs = needs - {"mask"}
    for name, picture in pictures.items():
        if picture is None and name in needs:
            raise Refusal(400, f"{name} is missing; {task} needs it", name)
        if picture is not None and name not in needs:
            raise Refusal(400, f"{task} has no use for {name}; leave it out", name)


def _check_files(values: Mapping[str, Any]) -> None:
    """Refuse texts that would open a file of this machine."""
    for name in ("guidance", "approximate"):
        texts = values.get(name) or ()
        for text in [texts] if isinstance(texts, str) else texts:
            kind = text.partition(":")[0].strip()
            if kind in OF_FILES:
                raise Refusal(400, f"{name} {kind!r} reads a model from a path, which no request may name", name)


def check_area(width: int, height: int, factor: float = 1.0) -> None:
    """Refuse a picture of an impossible size, or of more than `MAX_PIXELS` when it is enlarged `factor` times.

    Raises:
        ConfigError: a side that is no multiple of 8 in range.
        Refusal: too many pixels.
    """
    check_size("width", width)
    check_size("height", height)
    if width * height * factor**2 > MAX_PIXELS:
        raise Refusal(400, f"{width}x{height} px times {factor:g} is too large; at most {MAX_PIXELS} px", "width")


def _check_limits(values: Mapping[str, Any], image: Image.Image | None) -> None:
    """Refuse what would keep the machine busy for too long; everything else is checked where the model is known."""
    check_area(values.get("width", SIZE_STEP), values.get("height", SIZE_STEP), values.get("scale", 1.0))
    if image is not None:
        left, right, top, bottom = (values.get(name, 0) for name in ("left", "right", "top", "bottom"))
        width, height = image.width + left + right, image.height + top + bottom
        if width * height > MAX_INPUT_PIXELS:
            raise Refusal(400, f"{width}x{height} px are too many; at most {MAX_INPUT_PIXELS} px", "image")
    repeats = 1 + (values.get("resample") or 0)
    for name in ("num_inference_steps", "hires_steps"):
        if (values.get(name) or 0) * repeats > MAX_STEPS:
            raise Refusal(400, f"{name} {values[name]} with {repeats - 1} repeats; at most {MAX_STEPS} in all", name)
    for name in ("timesteps", "sigmas"):
        if len(values.get(name) or ()) * repeats > MAX_STEPS:
            raise Refusal(400, f"{name}: {len(values[name])} levels; at most {MAX_STEPS}", name)
