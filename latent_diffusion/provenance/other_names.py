"""Other programs' names of the samplers and spacings.

The names of a sampler stand on its class (`aliases`), those of a spacing here. Names are compared
without case, spaces, "_" and "-".
"""

import re
from functools import cache
from typing import Any

from latent_diffusion.diffusion.spacing import SPACINGS
from latent_diffusion.registry import find, names

__all__ = ["a1111_name", "sampler_of", "sampling_of", "spacing_of"]

SAMPLER_PACKAGE = "latent_diffusion.samplers"

SPACING_ALIASES = {
    "linspace": ("Uniform", "normal"),
    "ddim_uniform": ("DDIM",),
    "karras": ("Karras", "karras"),
    "exponential": ("Exponential",),
    "polyexponential": ("Polyexponential",),
    "sgm_uniform": ("SGM Uniform",),
    "simple": ("Simple",),
    "kl_optimal": ("KL Optimal",),
    "beta_sigma": (),
}
"""Our name -> A1111's and ComfyUI's. "beta" is ComfyUI's and ours; diffusers and Forge mean `beta_sigma` by it."""

WITH_FIELDS = {"dpmpp3m": "dpmpp_3m_sde:eta=0"}
"""Another tool's name, plain -> our sampler with the fields that make it the same."""

SUFFIXES = {"karras": "karras", "polyexponential": "polyexponential", "exponential": "exponential"}
"""Ends of sampler names that name the spacing, as in "DPM++ 2M Karras"."""


def _plain(text: str) -> str:
    return re.sub(r"[\s_\-]+", "", text.lower())


_SPACINGS = {_plain(alias): name for name, aliases in SPACING_ALIASES.items() for alias in (name, *aliases)}


@cache
def _samplers() -> dict[str, str]:
    """Return every name of every sampler, plain, with ours: the names of the files and their classes' `aliases`."""
    ours = {name: find(SAMPLER_PACKAGE, name) for name in names(SAMPLER_PACKAGE)}
    return WITH_FIELDS | {_plain(alias): name for name, kind in ours.items() for alias in (*kind.aliases, name)}


def a1111_name(sampler: str) -> str:
    """Return A1111's name of our sampler, the first of its aliases; a name that is not ours is returned as it is."""
    return find(SAMPLER_PACKAGE, sampler).aliases[0] if sampler in names(SAMPLER_PACKAGE) else sampler


def sampler_of(text: str) -> tuple[str, str | None] | None:
    """Return our name of a sampler and the spacing that its name implies; None where we do not know it."""
    known = _samplers()
    plain = _plain(text)
    if plain in known:
        return known[plain], None
    for suffix, spacing in SUFFIXES.items():
        if plain.removesuffix(suffix) in known:
            return known[plain.removesuffix(suffix)], spacing
    if text.endswith("_k") and _plain(text[:-2]) in known:  # InvokeAI
        return known[_plain(text[:-2])], "karras"
    return None


def sampling_of(sampler: str, spacing: str) -> dict[str, Any]:
    """Return sampler and spacing by the names of our records; a name that we do not have stays, to be refused later."""
    ours, implied = sampler_of(sampler) or (sampler, None)
    return {"sampler": ours, "spacing": spacing or implied}


def spacing_of(text: str, sampler: str, aligned: str) -> str | None:
    """Return our name of a spacing; None where we do not know it.

    `sampler` (ours) decides what "automatic" means, `aligned` what "ays" does: "ays_sd1" or "ays_sdxl".
    """
    plain = _plain(text)
    if plain == "automatic":
        return getattr(find(SAMPLER_PACKAGE, sampler.partition(":")[0]), "automatic", "linspace")
    if plain in ("ays", "alignyoursteps"):
        return aligned
    if plain == "aysa1111":
        return f"{aligned}_a1111"
    return {**_SPACINGS, **{_plain(name): name for name in SPACINGS}}.get(plain)
