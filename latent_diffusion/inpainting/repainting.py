"""How a part of a picture is repainted: the options of `inpaint` and `outpaint` that must fit together."""

from typing import Any

from latent_diffusion.errors import ConfigError
from latent_diffusion.options.option import checked
from latent_diffusion.options.tasks import RepaintingOptions

__all__ = ["Repainting"]

_Checked: Any = checked(RepaintingOptions)


class Repainting(_Checked):
    """The checked options; fields, units and defaults are those of `RepaintingOptions`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.padding_mask_crop is not None and self.inpaint_area == "whole":
            raise ConfigError("padding_mask_crop has no effect with inpaint_area 'whole'; leave it out")
        if self.mask_blur and self.mask_mode != "soft":
            raise ConfigError("mask_blur is the ramp of a soft mask; use mask_mode 'soft' with it, or feather")
        if self.start_from == "noise" and self.strength < 1.0:
            raise ConfigError(f"start_from 'noise' needs strength 1, not {self.strength:g}; use 'noised_image'")

    @property
    def start(self) -> str:
        """Where sampling starts: `start_from`, or else "noise" for an emptied hole, "noised_image" for a filled one."""
        emptied = self.masked_content in ("noise", "nothing") and self.strength == 1.0
        return self.start_from or ("noise" if emptied else "noised_image")
