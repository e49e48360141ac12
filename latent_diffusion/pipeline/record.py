"""What made a picture: every parameter that decides its pixels, written into the file and read back.

A file carries it twice: as the A1111 web UI's `parameters` text, which most tools read, and exactly, as JSON under
`latent_diffusion`. Reference for the text: github.com/AUTOMATIC1111/stable-diffusion-webui, modules/infotext_utils.py.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import latent_diffusion
from latent_diffusion.checkpoint.components import Applied
from latent_diffusion.errors import DataError

__all__ = ["HiresRecord", "ImageToImageRecord", "InpaintRecord", "Record", "Task"]

_SAMPLERS = {"ddpm": "DDPM", "ddim": "DDIM", "dpmpp_2m": "DPM++ 2M"}  # our names -> A1111's
_SPACINGS = {"karras": "Karras"}  # A1111 knows the others as the sampler's uniform times
_CONTENTS = {"fill": "fill", "noise": "latent noise", "nothing": "latent nothing"}  # "original" is not written
_UPSCALERS = {
    "latent": "Latent",
    "latent_bicubic": "Latent (bicubic)",
    "latent_nearest": "Latent (nearest)",
    "lanczos": "Lanczos",
}


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


_TASKS = {"inpaint": InpaintRecord, "image_to_image": ImageToImageRecord, "hires": HiresRecord}
Task = InpaintRecord | ImageToImageRecord | HiresRecord
"""What besides text to image made a picture."""


@dataclass(frozen=True)
class Record:
    """What made one picture."""

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
    guidance: tuple[str, ...] | None = None  # besides scale, rescale, interval; None = classifier-free guidance
    guidance_interval: tuple[float, float] | None = None  # shares of the steps; None = always
    initial: str = "seed"  # "seed", or "latents" when the initial noise was given, or "generator"
    stopped_after: int | None = None  # steps done when the caller stopped it
    emphasis: str = "none"  # how weights in the prompt count; records before it had none
    long_prompt: str = "truncate"  # what happened to prompts of more than 75 tokens
    prompt_2: str | None = None  # what SDXL's second text encoder read instead of `prompt`
    negative_prompt_2: str | None = None
    size_ids: tuple[float, ...] | None = None  # SDXL: original height, width, crop top, left, target size or score
    negative_size_ids: tuple[float, ...] | None = None
    inpaint: InpaintRecord | None = None
    image_to_image: ImageToImageRecord | None = None
    hires: HiresRecord | None = None
    variation_seed: int | None = None  # None = no variation
    variation_strength: float = 0.0  # share of the way from the noise of `seed` to that of `variation_seed`
    adapters: tuple[Applied, ...] = ()  # LoRA and learned words at work, those of the prompt's tags among them
    software: str = f"latent_diffusion {latent_diffusion.__version__}"

    def to_json(self) -> str:
        """Return everything as one JSON object."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Record":
        """Read what `to_json` wrote.

        Raises:
            DataError: no JSON, or fields that are not a record's.
        """
        try:
            values = json.loads(text)
            tasks = {name: values.pop(name, None) for name in _TASKS}
            for name in ("box", "added"):
                if tasks["inpaint"] and tasks["inpaint"].get(name) is not None:
                    tasks["inpaint"][name] = tuple(tasks["inpaint"][name])
            for name in ("size_ids", "negative_size_ids", "guidance", "guidance_interval"):
                if values.get(name) is not None:
                    values[name] = tuple(values[name])
            values["adapters"] = tuple(Applied(**adapter) for adapter in values.get("adapters", ()))
            return cls(**values, **{name: task and _TASKS[name](**task) for name, task in tasks.items()})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DataError(f"the picture's `latent_diffusion` record cannot be read: {error}") from error

    def infotext(self) -> str:
        """Return the A1111 `parameters` text."""
        lines = [(self.prompt or "") + "".join(_tag(a) for a in self.adapters if not _named(a, self.prompt or ""))]
        if self.negative_prompt:
            lines.append(f"Negative prompt: {self.negative_prompt}")
        values: dict[str, Any] = {
            "Steps": self.num_inference_steps,
            "Sampler": _SAMPLERS.get(self.sampler, self.sampler),
            "Schedule type": _SPACINGS.get(self.spacing, "Uniform"),
            "CFG scale": _number(self.guidance_scale),
            "Seed": self.seed,
            "Size": f"{self.work_width}x{self.work_height}",
            "Model": self.model,
        }
        if self.variation_seed is not None:
            values["Variation seed"] = self.variation_seed
            values["Variation seed strength"] = _number(self.variation_strength)
        task = self.inpaint or self.image_to_image or self.hires
        if task:
            values["Denoising strength"] = _number(task.strength)
        if self.clip_skip:
            values["Clip skip"] = self.clip_skip + 1  # A1111 counts from 1, diffusers from 0
        values["RNG"] = "CPU"
        if self.eta:
            values["Eta"] = _number(self.eta)
        if self.inpaint:
            values |= _of_inpainting(self.inpaint)
        if self.hires:
            values["Hires upscale"] = _number(self.hires.scale)
            values["Hires steps"] = self.hires.num_inference_steps
            values["Hires upscaler"] = _UPSCALERS[self.hires.upscaler]
        for kind, title in (("lora", "Lora hashes"), ("embedding", "TI hashes")):
            if hashes := [f"{a.name}: {a.hash}" for a in self.adapters if a.kind == kind]:
                values[title] = ", ".join(hashes)
        values["Version"] = self.software
        lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in values.items()))
        return "\n".join(lines)


def _tag(adapter: Applied) -> str:
    """Return the words by which A1111 draws with a LoRA: the text model's weight first."""
    if adapter.kind != "lora":
        return ""
    unet, text = (adapter.strengths.get(part, 1.0) for part in ("unet", "text_encoder"))
    return f" <lora:{adapter.name}:{text:g}>" if unet == text else f" <lora:{adapter.name}:{text:g}:{unet:g}>"


def _named(adapter: Applied, prompt: str) -> bool:
    """Whether the prompt itself asks for a LoRA."""
    return any(f"<{kind}:{adapter.name}{end}" in prompt for kind in ("lora", "lyco") for end in ":>")


def _of_inpainting(task: InpaintRecord) -> dict[str, Any]:
    """Return the fields that A1111 has for inpainting; "Whole picture" is what it means by their absence."""
    values: dict[str, Any] = {}
    if task.masked_content in _CONTENTS:
        values["Masked content"] = _CONTENTS[task.masked_content]
    if task.inpaint_area != "whole":
        values["Inpaint area"] = "Only masked"
        if task.padding is not None:
            values["Masked area padding"] = task.padding
    return values


def _number(value: float) -> str:
    return f"{value:g}"


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text
