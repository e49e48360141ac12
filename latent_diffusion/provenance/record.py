"""What made a picture: every parameter that decides its pixels, written into the file and read back.

A file carries it twice: as the A1111 web UI's `parameters` text (`provenance.infotext`), which most tools read, and
exactly, as JSON under `latent_diffusion`.
"""

import dataclasses
import json
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

from latent_diffusion.checkpoint.components import Applied
from latent_diffusion.errors import DataError
from latent_diffusion.version import VERSION

if TYPE_CHECKING:
    from pydantic import TypeAdapter

__all__ = ["HiresRecord", "ImageToImageRecord", "InpaintRecord", "Record", "RefinerRecord", "Task"]


@dataclass(frozen=True)
class InpaintRecord:
    """How a part of a picture was repainted."""

    image_sha256: str  # of the picture's 8-bit pixels, so that it can be recognised
    mask_sha256: str  # of the mask, one byte a pixel
    strength: float
    masked_content: str
    start_from: str
    padding: int | None  # px around the mask's box; None = chosen by its size
    feather: int  # px
    box: tuple[int, int, int, int] | None  # left, top, right, bottom worked on, px; None = nothing was repainted
    steps_run: int  # after strength
    exact_steps: bool = False
    mask_mode: str = "binary"
    mask_grow: int = 0  # px
    mask_blur: int = 0  # px
    inpaint_area: str = "auto"
    resample: int = 0
    jump_length: int = 10
    color_match: bool = False
    latent_blend: bool = True
    added: tuple[int, int, int, int] | None = None  # px of outpainting: left, right, top, bottom


@dataclass(frozen=True)
class ImageToImageRecord:
    """How a picture was redrawn."""

    image_sha256: str  # of the picture's 8-bit RGB pixels as read
    strength: float
    exact_steps: bool
    resize_mode: str
    steps_run: int  # after strength


@dataclass(frozen=True)
class HiresRecord:
    """How a small picture was enlarged and drawn on; the record's working size is that of the small one."""

    scale: float
    upscaler: str
    strength: float  # of the second pass
    num_inference_steps: int  # of the second pass, before strength
    steps_run: int  # of the second pass
    size_ids: tuple[float, ...] | None = None  # SDXL: what the second pass was told, see `Record.size_ids`
    negative_size_ids: tuple[float, ...] | None = None


Task = InpaintRecord | ImageToImageRecord | HiresRecord
"""What besides text to image made a picture."""


@dataclass(frozen=True)
class RefinerRecord:
    """The model that drew the end of the path, where it is not what the first one is; see `Record` for the fields."""

    model_hash: str | None
    dtype: str
    family: str | None = None
    prediction_type: str | None = None
    averaged: bool = False
    adapters: tuple[Applied, ...] = ()
    size_ids: tuple[float, ...] | None = None
    negative_size_ids: tuple[float, ...] | None = None


WHERE_SET = ("discard_next_to_last",)
"""Fields that are written only where they have a value, so that records without them stay as they were."""


@dataclass(frozen=True)
class Record:
    """What made one picture."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # read by `from_json`

    model: str
    prompt: str | None  # None = embeddings were given
    negative_prompt: str | None
    seed: int
    num_inference_steps: int
    guidance_scale: float
    guidance_rescale: float
    sampler: str
    spacing: str
    eta: float
    clip_skip: int | None
    width: int  # px, of the file
    height: int
    work_width: int  # px, that the model worked at
    work_height: int
    dtype: str
    device: str
    spacing_rho: float | None = None  # exponent of karras and polyexponential spacing, None = theirs
    discard_next_to_last: bool | None = None  # whether the level before the last was left out of one more; None = no
    timesteps: tuple[float, ...] | None = None  # of spacing "custom"
    sigmas: tuple[float, ...] | None = None
    guidance: tuple[str, ...] | None = None  # besides scale, rescale, interval; None = classifier-free guidance
    guidance_interval: tuple[float, float] | None = None  # shares of the steps; None = always
    approximate: tuple[str, ...] | None = None  # what was computed less of; None = nothing
    initial: str = "seed"  # "seed", or "latents" when the initial noise was given, or "generator"
    stopped_after: int | None = None  # steps done, of both passes of hires, when the caller stopped it
    emphasis: str = "none"  # how weights in the prompt count; records before it had none
    long_prompt: str = "truncate"  # what happened to prompts of more than 75 tokens
    read_as: str | None = None  # what was read in place of `prompt`; None = it was read as it is
    prompt_2: str | None = None  # what SDXL's second text encoder read instead of `prompt`
    negative_prompt_2: str | None = None
    size_ids: tuple[float, ...] | None = None  # SDXL: original height, width, crop top, left, target size or score
    negative_size_ids: tuple[float, ...] | None = None
    refiner: str | None = None  # name of the model that drew the end of the path
    refined_below: float | None = None  # training time at which it took over
    refined_by: RefinerRecord | None = None  # what else decides that; records before it had none
    inpaint: InpaintRecord | None = None
    image_to_image: ImageToImageRecord | None = None
    hires: HiresRecord | None = None
    variation_seed: int | None = None  # None = no variation
    variation_strength: float = 0.0  # share of the way from the noise of `seed` to that of `variation_seed`
    adapters: tuple[Applied, ...] = ()  # LoRA and learned words at work, those of the prompt's tags among them
    model_hash: str | None = None  # of its weights, see `checkpoint.model_hash`; None = made in memory
    family: str | None = None  # that the model was said to be of; None = nothing was said
    prediction_type: str | None = None  # that its output was said to be
    averaged: bool = False  # whether the moving average (EMA) of its weights was asked for
    vae_dtype: str = "float32"
    software: str = f"latent_diffusion {VERSION}"

    def to_json(self) -> str:
        """Return everything as one JSON object."""
        values = {k: v for k, v in dataclasses.asdict(self).items() if v is not None or k not in WHERE_SET}
        whole = json.dumps(values, ensure_ascii=False, allow_nan=False)
        # half a character (a lone surrogate) has no place in any file; all others are written in ASCII
        return json.dumps(json.loads(whole.encode("utf-8", "replace")))

    @classmethod
    def from_json(cls, text: str) -> "Record":
        """Read what `to_json` wrote.

        Raises:
            DataError: no JSON, or fields that are not a record's.
        """
        from pydantic import ValidationError

        try:
            return _reader().validate_json(text, strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part)[:40] for part in first["loc"])
            raise DataError(
                f"the picture's `latent_diffusion` record cannot be read: {where}{': ' if where else ''}{first['msg']}"
            ) from error


@cache
def _reader() -> "TypeAdapter[Record]":
    """Return what reads a record and checks the type of every field: it may come from a stranger's file."""
    from pydantic import TypeAdapter

    return TypeAdapter(Record)
