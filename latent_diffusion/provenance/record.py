"""The record of a picture: every parameter that decides its pixels, written into the file and read back.

A file carries it twice: as the A1111 web UI's `parameters` text (`provenance.infotext`), which most tools read, and
exactly, as JSON under `latent_diffusion`.
"""

import dataclasses
import json
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from latent_diffusion.checkpoint.components import Applied
from latent_diffusion.errors import DataError
from latent_diffusion.options.call import Options
from latent_diffusion.options.option import recorded
from latent_diffusion.options.tasks import RedrawingOptions, RepaintingOptions, SecondPassOptions
from latent_diffusion.version import VERSION

if TYPE_CHECKING:
    from pydantic import TypeAdapter

__all__ = ["TASK_FIELDS", "HiresRecord", "ImageToImageRecord", "InpaintRecord", "Record", "RefinerRecord", "Task"]


ALWAYS = (
    "work_height", "work_width", "num_inference_steps", "guidance_scale", "guidance", "guidance_rescale",
    "guidance_interval", "approximate", "sampler", "spacing", "spacing_rho", "timesteps", "sigmas", "eta", "clip_skip",
    "emphasis", "long_prompt", "negative_prompt", "prompt_2", "negative_prompt_2", "variation_seed",
    "variation_strength",
)  # fmt: skip
"""Options that every record has held from the beginning. One that came later is written only where it is not at its
default, so that earlier versions read the records of pictures in which it plays no part."""

LATER = {"mask_channel": "grey", "mask_invert": False, "inpainting_adapter": False, "adapter_hash": None}
"""The same of `InpaintRecord`: fields that came later, with their values in pictures in which they play no part."""

_Repainting: Any = recorded(RepaintingOptions)
_Redrawing: Any = recorded(RedrawingOptions)
_SecondPass: Any = recorded(SecondPassOptions)
_Options: Any = recorded(Options)


@dataclass(frozen=True, kw_only=True)
class InpaintRecord(_Repainting):
    """How a part of a picture was repainted: `RepaintingOptions`, and what follows from picture and mask."""

    image_sha256: str  # of the picture's 8-bit pixels, so that it can be recognised
    mask_sha256: str  # of the mask, one byte a pixel
    box: tuple[int, int, int, int] | None  # left, top, right, bottom worked on, px; None = nothing was repainted
    steps_run: int  # after strength
    added: tuple[int, int, int, int] | None = None  # px of outpainting: left, right, top, bottom
    adapter_hash: str | None = None  # of the inpainting adapter in the model's folder, where it was used


@dataclass(frozen=True, kw_only=True)
class ImageToImageRecord(_Redrawing):
    """How a picture was redrawn: `RedrawingOptions`, and what follows from the picture."""

    image_sha256: str  # of the picture's 8-bit RGB pixels as read
    steps_run: int  # after strength


@dataclass(frozen=True, kw_only=True)
class HiresRecord(_SecondPass):
    """How a small picture was enlarged and drawn on: `SecondPassOptions`; `Record.work_width` is the small one's."""

    steps_run: int  # of the second pass
    size_ids: tuple[float, ...] | None = None  # SDXL: size conditioning of the second pass, see `Record.size_ids`
    negative_size_ids: tuple[float, ...] | None = None


Task = InpaintRecord | ImageToImageRecord | HiresRecord
"""The task of a picture, other than text to image."""

TASK_FIELDS = {InpaintRecord: "inpaint", ImageToImageRecord: "image_to_image", HiresRecord: "hires"}
"""Field of the record that holds each."""


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


@dataclass(frozen=True, kw_only=True)
class Record(_Options):
    """The record of one picture: every option of `Options` that decides pixels, as a field, and the rest below."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # read by `from_json`

    model: str
    prompt: str | None  # None = embeddings were given
    read_as: str | None = None  # rewritten prompt; None = the prompt was used unchanged
    seed: int
    width: int  # px, of the file
    height: int
    dtype: str
    device: str
    initial: str = "seed"  # "seed", or "latents" when the initial noise was given, or "generator"
    stopped_after: int | None = None  # steps done, of both passes of hires, when the caller stopped it
    size_ids: tuple[float, ...] | None = None  # SDXL: original height, width, crop top, left, target size or score
    negative_size_ids: tuple[float, ...] | None = None
    refiner: str | None = None  # name of the model that drew the end of the path
    refined_below: float | None = None  # training time at which it took over
    refined_by: RefinerRecord | None = None  # what else decides that; records before it had none
    inpaint: InpaintRecord | None = None
    image_to_image: ImageToImageRecord | None = None
    hires: HiresRecord | None = None
    adapters: tuple[Applied, ...] = ()  # LoRA and learned words at work, those of the prompt's tags among them
    model_hash: str | None = None  # of its weights, see `checkpoint.model_hash`; None = made in memory
    family: str | None = None  # given when the model was opened; None = read from its files
    prediction_type: str | None = None  # likewise
    averaged: bool = False  # whether the moving average (EMA) of its weights was asked for
    open_clip: bool = False  # whether clip_skip is of a text encoder of OpenCLIP's kind, where A1111 reads none
    vae: str | None = None  # name of the autoencoder's file or folder, where it was not the model's own
    vae_hash: str | None = None  # sha256 of its file
    vae_dtype: str = "float32"
    software: str = f"latent_diffusion {VERSION}"

    def to_json(self) -> str:
        """Return everything as one JSON object."""
        first = dict.fromkeys(("model", "prompt", "read_as", "negative_prompt", "seed"))
        values = first | dataclasses.asdict(self)
        for field in dataclasses.fields(_Options):
            if field.name not in ALWAYS and values[field.name] == field.default:
                del values[field.name]
        for name in ("open_clip", "vae", "vae_hash"):
            if not values[name]:
                del values[name]
        for name, default in LATER.items():
            if values["inpaint"] and values["inpaint"][name] == default:
                del values["inpaint"][name]
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
    """Return what reads a record and checks the type of every field: it may come from an untrusted file."""
    from pydantic import TypeAdapter

    return TypeAdapter(Record)
