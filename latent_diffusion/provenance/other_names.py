"""What other programs call our samplers and spacings, and what a diffusers folder's scheduler stands for.

Pure data and its reading. Names are compared without case, spaces, "_" and "-".
"""

import re
from collections.abc import Mapping
from typing import Any

from latent_diffusion.diffusion.spacing import SPACINGS
from latent_diffusion.registry import names

__all__ = ["AUTOMATIC", "folder_choice", "sampler_of", "spacing_of"]

SAMPLER_ALIASES = {
    "ddim": ("DDIM", "DDIMScheduler"),
    "ddpm": ("DDPM", "DDPMScheduler"),
    "deis": ("DEIS", "DEISMultistep", "DEISMultistepScheduler"),
    "dpm2": ("DPM2", "dpm_2", "kdpm_2", "KDPM2Discrete", "KDPM2DiscreteScheduler"),
    "dpm2_ancestral": ("DPM2 a", "dpm_2_ancestral", "kdpm_2_a", "KDPM2AncestralDiscreteScheduler"),
    "dpmpp_2m": ("DPM++ 2M", "DPMSolverMultistep", "DPMSolverMultistepScheduler"),
    "dpmpp_2m_sde": ("DPM++ 2M SDE", "dpmpp_2m_sde_gpu"),
    "dpmpp_2s_ancestral": ("DPM++ 2S a", "DPM++ 2S Ancestral"),
    "dpmpp_3m_sde": ("DPM++ 3M SDE", "dpmpp_3m_sde_gpu"),
    "dpmpp_sde": ("DPM++ SDE", "dpmpp_sde_gpu", "DPMSolverSDE", "DPMSolverSDEScheduler"),
    "euler": ("Euler", "EulerDiscrete", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"),
    "euler_ancestral": ("Euler a", "EulerAncestralDiscrete", "EulerAncestralDiscreteScheduler"),
    "heun": ("Heun", "HeunDiscrete", "HeunDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"),
    "lcm": ("LCM", "LCMScheduler", "FlowMatchLCMScheduler"),
    "lms": ("LMS", "k_lms", "LMSDiscrete", "LMSDiscreteScheduler"),
    "pndm": ("PNDM", "PLMS", "PNDMScheduler"),
    "restart": ("Restart",),
    "sa_solver": ("SA-Solver", "SASolverScheduler"),
    "tcd": ("TCD", "TCDScheduler"),
    "unipc": ("UniPC", "uni_pc_bh2", "UniPCMultistep", "UniPCMultistepScheduler"),
}
"""Our name -> A1111's, ComfyUI's, InvokeAI's, and diffusers' class, where they are not ours."""

SPACING_ALIASES = {
    "linspace": ("Uniform", "normal"),
    "leading": ("DDIM", "ddim_uniform"),
    "karras": ("Karras", "karras"),
    "exponential": ("Exponential",),
    "polyexponential": ("Polyexponential",),
    "sgm_uniform": ("SGM Uniform",),
    "simple": ("Simple",),
    "kl_optimal": ("KL Optimal",),
    "beta_sigma": (),
}
"""Our name -> A1111's and ComfyUI's. "beta" is ComfyUI's and ours; diffusers and Forge mean `beta_sigma` by it."""

AUTOMATIC = {
    "dpm2": "karras",
    "dpm2_ancestral": "karras",
    "dpmpp_2m": "karras",
    "dpmpp_2s_ancestral": "karras",
    "dpmpp_sde": "karras",
    "dpmpp_2m_sde": "exponential",
    "dpmpp_3m_sde": "exponential",
    "ddim": "leading",
    "pndm": "leading",
    "unipc": "leading",
}
"""What A1111's schedule "Automatic" means for a sampler; linspace for the others."""

SUFFIXES = {"karras": "karras", "polyexponential": "polyexponential", "exponential": "exponential"}
"""Ends of sampler names that name the spacing, as in "DPM++ 2M Karras"."""

SPACING_OF_CLASS = {
    "DDIMScheduler": "leading",
    "DDPMScheduler": "leading",
    "PNDMScheduler": "leading",
    "LCMScheduler": "trailing",
    "TCDScheduler": "trailing",
}
"""What diffusers' classes do where the file does not say; linspace for the others. LCM's own grid is near trailing."""

SPACING_FLAGS = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta_sigma",
}


def _plain(text: str) -> str:
    return re.sub(r"[\s_\-]+", "", text.lower())


_SAMPLERS = {_plain(alias): name for name, aliases in SAMPLER_ALIASES.items() for alias in (name, *aliases)}
_SPACINGS = {_plain(alias): name for name, aliases in SPACING_ALIASES.items() for alias in (name, *aliases)}


def sampler_of(text: str) -> tuple[str, str | None] | None:
    """Return our name of a sampler and the spacing that its name implies; None where we do not know it."""
    known = {**_SAMPLERS, **{_plain(name): name for name in names("latent_diffusion.samplers")}}
    plain = _plain(text)
    if plain in known:
        return known[plain], None
    for suffix, spacing in SUFFIXES.items():
        if plain.removesuffix(suffix) in known:
            return known[plain.removesuffix(suffix)], spacing
    if text.endswith("_k") and _plain(text[:-2]) in known:  # InvokeAI
        return known[_plain(text[:-2])], "karras"
    return None


def spacing_of(text: str, sampler: str, aligned: str) -> str | None:
    """Return our name of a spacing; None where we do not know it.

    `sampler` (ours) decides what "automatic" means, `aligned` what "ays" does: "ays_sd1" or "ays_sdxl".
    """
    plain = _plain(text)
    if plain == "automatic":
        return AUTOMATIC.get(sampler, "linspace")
    if plain in ("ays", "alignyoursteps"):
        return aligned
    return {**_SPACINGS, **{_plain(name): name for name in SPACINGS}}.get(plain)


def folder_choice(config: Mapping[str, Any]) -> tuple[str, str, str | None]:
    """Return sampler and spacing of a diffusers scheduler's configuration, and what of it we do not do (or None)."""
    kind = str(config.get("_class_name", ""))
    missing = None
    found = sampler_of(kind) if kind.endswith("Scheduler") else None
    sampler = found[0] if found else "dpmpp_2m"
    if not found:
        missing = f"the model's own sampler {kind or '(none named)'} is not among ours; using {sampler}"
    elif kind == "DPMSolverMultistepScheduler":
        sampler, missing = _dpm_solver(config)
    elif kind == "PNDMScheduler" and not config.get("skip_prk_steps", False):
        missing = "PNDM's Runge-Kutta warm-up is not done; its first step is Heun's, as with skip_prk_steps"
    elif kind == "UniPCMultistepScheduler" and config.get("solver_order", 2) != 2:
        sampler = f"unipc:solver_order={config['solver_order']}"
    flags = [spacing for flag, spacing in SPACING_FLAGS.items() if config.get(flag)]
    said = config.get("timestep_spacing", SPACING_OF_CLASS.get(kind, "linspace" if found else "leading"))
    spacing = flags[0] if flags else str(said)
    return sampler, spacing if spacing in SPACINGS else "leading", missing


def _dpm_solver(config: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return the sampler that a DPMSolverMultistepScheduler is, and what of it we do not do."""
    algorithm, order = config.get("algorithm_type", "dpmsolver++"), config.get("solver_order", 2)
    ours = {
        ("dpmsolver++", 1): "ddim",
        ("dpmsolver++", 2): "dpmpp_2m",
        ("dpmsolver++", 3): "dpmpp_3m_sde:eta=0",
        ("sde-dpmsolver++", 2): "dpmpp_2m_sde",
        ("sde-dpmsolver++", 3): "dpmpp_3m_sde",
    }
    if (algorithm, order) in ours:
        return ours[algorithm, order], None
    return "dpmpp_2m", f"the model's own sampler, {algorithm!r:.40} of order {order!r:.9}, is not ours; using dpmpp_2m"
