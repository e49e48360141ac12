"""How a part of a picture is repainted: the arguments of `inpaint` and `outpaint`, documented and checked once."""

from dataclasses import dataclass, fields
from typing import Any

from latent_diffusion.errors import ConfigError
from latent_diffusion.inpainting.fill import CONTENTS, MaskedContent
from latent_diffusion.inpainting.masks import MASK_MODES, MaskMode
from latent_diffusion.inpainting.region import AREAS, Area
from latent_diffusion.pipeline.call.options import Options
from latent_diffusion.pipeline.call.settings import check_integer, check_name, check_number

__all__ = ["InpaintOptions", "Repainting"]

STARTS = ("noise", "noised_image")
MAX_EDGE = 64  # px of a ramp
MAX_GROWTH = 1024  # px
MAX_PADDING = 1_000_000  # px; more than any picture has a side
MAX_WALKS = 1000


class InpaintOptions(Options, total=False):
    """What may be said of a repainting besides `Options`; `height` and `width` are what the model works at."""

    strength: float
    """Share of the steps that are run; 0 returns the input. Default 1."""
    exact_steps: bool
    """Whether `num_inference_steps` are run at any strength, being the end of a finer path. Default False."""
    masked_content: MaskedContent
    """What stands in the hole at first: "original", "fill", "noise" or "nothing". Default "original"."""
    start_from: str | None
    """"noise" or "noised_image"; None = "noise" for an emptied hole at strength 1, else "noised_image"."""
    mask_mode: MaskMode
    """"binary": grey of 128 or more is repainted; "soft": grey is the strength of each pixel. Default "binary"."""
    mask_grow: int
    """px by which the mask is made larger; what it then covers is repainted. Default 0."""
    mask_blur: int
    """px over which a soft mask rises from its edge inwards. Default 0."""
    feather: int
    """px over which the old picture fades into the new one, inside the mask. Default 2."""
    inpaint_area: Area
    """What the model sees: "auto", "masked" or "whole"; see `inpainting.region`. Default "auto"."""
    padding_mask_crop: int | None
    """px in view around the mask's box; None = a quarter of its longer side, 32 for the area "masked"."""
    resample: int
    """How often each stretch of steps is walked again, so that old and new agree better. Default 0."""
    jump_length: int
    """Steps of such a stretch. Default 10."""
    color_match: bool
    """Whether the new part gets the colours that its surroundings have lost in the model. Default False."""
    latent_blend: bool
    """False leaves keeping the rest, in latent space, to an inpainting U-Net. Default True."""


@dataclass(frozen=True)
class Repainting:
    """The same, checked; fields as in `InpaintOptions`."""

    strength: float = 1.0
    exact_steps: bool = False
    masked_content: MaskedContent = "original"
    start_from: str | None = None
    mask_mode: MaskMode = "binary"
    mask_grow: int = 0
    mask_blur: int = 0
    feather: int = 2
    inpaint_area: Area = "auto"
    padding_mask_crop: int | None = None
    resample: int = 0
    jump_length: int = 10
    color_match: bool = False
    latent_blend: bool = True

    def __post_init__(self) -> None:
        names = {"masked_content": CONTENTS, "mask_mode": MASK_MODES, "inpaint_area": AREAS}
        for name, known in names.items():
            check_name(name, getattr(self, name), known)
        most = {"mask_grow": MAX_GROWTH, "mask_blur": MAX_EDGE, "feather": MAX_EDGE, "resample": MAX_WALKS}
        for name, limit in most.items():
            check_integer(name, getattr(self, name), 0, limit)
        check_integer("jump_length", self.jump_length, 1, MAX_WALKS)
        check_number("strength", self.strength, 1.0)
        for name in ("exact_steps", "color_match", "latent_blend"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} {getattr(self, name)!r:.50} is neither True nor False")
        if self.padding_mask_crop is not None:
            check_integer("padding_mask_crop", self.padding_mask_crop, 0, MAX_PADDING)
            if self.inpaint_area == "whole":
                raise ConfigError("padding_mask_crop has no effect where the whole picture is seen; leave it out")
        if self.mask_blur and self.mask_mode != "soft":
            raise ConfigError("mask_blur is the rise of a soft mask; use mask_mode 'soft' with it, or feather")
        if self.start_from is not None:
            check_name("start_from", self.start_from, STARTS)
            if self.start_from == "noise" and self.strength < 1.0:
                raise ConfigError(f"start_from 'noise' needs strength 1, not {self.strength:g}; use 'noised_image'")

    @classmethod
    def read(cls, options: InpaintOptions) -> "tuple[Repainting, Options]":
        """Return what concerns the repainting, and the options that are left.

        Raises:
            ConfigError: a value that cannot be, or that could take no effect.
        """
        mine = {field.name for field in fields(cls)}
        values: dict[str, Any] = {name: value for name, value in options.items() if name in mine}
        rest: Any = {name: value for name, value in options.items() if name not in mine}
        return cls(**values), rest

    @property
    def start(self) -> str:
        """Where sampling starts: "noise" for an emptied hole, "noised_image" otherwise, unless the caller says."""
        emptied = self.masked_content in ("noise", "nothing") and self.strength == 1.0
        return self.start_from or ("noise" if emptied else "noised_image")
