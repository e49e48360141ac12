"""How a part of a picture is repainted: the checked arguments of `inpaint` and `outpaint`."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from latent_diffusion.checks import check_flag, check_integer, check_name, check_number
from latent_diffusion.errors import ConfigError
from latent_diffusion.inpainting.fill import CONTENTS, MaskedContent
from latent_diffusion.inpainting.masks import MASK_MODES, MaskMode
from latent_diffusion.inpainting.region import AREAS, Area

__all__ = ["Repainting"]

STARTS = ("noise", "noised_image")
MAX_EDGE = 64  # px of a ramp
MAX_GROWTH = 1024  # px
MAX_PADDING = 1_000_000  # px; more than any picture has a side
MAX_WALKS = 1000


@dataclass(frozen=True)
class Repainting:
    """The checked arguments; fields, units and defaults as in `pipeline.call.options.InpaintOptions`."""

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
            check_flag(name, getattr(self, name))
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
    def read(cls, options: Mapping[str, Any]) -> "tuple[Repainting, Any]":
        """Return the options of the repainting, checked, and the options that are left.

        Raises:
            ConfigError: a value outside its range, or one that could take no effect.
        """
        own = {field.name for field in fields(cls)}
        values = {name: value for name, value in options.items() if name in own}
        return cls(**values), {name: value for name, value in options.items() if name not in own}

    @property
    def start(self) -> str:
        """Where sampling starts: "noise" for an emptied hole, "noised_image" otherwise, unless the caller says."""
        emptied = self.masked_content in ("noise", "nothing") and self.strength == 1.0
        return self.start_from or ("noise" if emptied else "noised_image")
