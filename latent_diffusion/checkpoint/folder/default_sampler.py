"""A diffusers `scheduler_config.json` -> the sampler that a model is drawn with where the caller names none.

Every field that the scheduler's class reads is followed, or is without effect here, or is named in `unfollowed`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from latent_diffusion.checkpoint.folder.diffusers_schedulers import FIXED, KNOWN, NOTES, SCHEDULERS
from latent_diffusion.diffusion.spacing import SPACINGS, Final
from latent_diffusion.errors import ConfigError
from latent_diffusion.registry import find, names

__all__ = ["DefaultSampler", "default_sampler", "final_level", "unread", "with_changes", "with_class_defaults"]

PACKAGE = "latent_diffusion.samplers"
FALLBACK = "dpmpp_2m"
SPACING_FLAGS = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta_sigma",
}
LAW = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
    "rescale_betas_zero_snr", "use_flow_sigmas", "flow_shift", "shift", "use_dynamic_shifting",
)  # fmt: skip
"""Fields of the noise law and the prediction, which `scheduler_config.py` reads."""
ZERO_SNR = "rescale_betas_zero_snr"
FOLLOWED = (*LAW, *SPACING_FLAGS, "timestep_spacing", "steps_offset", "final_sigmas_type", "set_alpha_to_one")
RANGE_OF_TIMES = (
    "EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
    "DPMSolverSDEScheduler", "LMSDiscreteScheduler",
)  # fmt: skip
"""Classes whose karras, exponential and beta sigmas lie between those of the first and last time of the spacing."""


@dataclass(frozen=True)
class DefaultSampler:
    """The sampler that corresponds to a folder's scheduler."""

    sampler: str  # our name, with fields after a colon: "unipc:solver_order=3"
    spacing: str
    unfollowed: tuple[str, ...] = ()  # what differs from diffusers, each a sentence without its full stop


def with_class_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration as its diffusers class reads it: unread fields left out, absent ones filled in.

    One of a class that is not known here is returned as it is. Private fields (`_class_name`) stay.
    """
    kind = str(config.get("_class_name", ""))
    if kind not in SCHEDULERS:
        return dict(config)
    read = {name: value for name, value in config.items() if name in SCHEDULERS[kind] or name.startswith("_")}
    return {**SCHEDULERS[kind], **read, **FIXED.get(kind, {})}


def unread(config: Mapping[str, Any]) -> list[str]:
    """Return the fields of a configuration that its class does not read, in diffusers as here."""
    known = SCHEDULERS.get(str(config.get("_class_name", "")))
    return [] if known is None else [name for name in config if name in KNOWN and name not in known]


def with_changes(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with other fields, less those that its class, now perhaps another, does not read."""
    changed = {**config, **changes}
    idle = unread(changed)
    return {name: value for name, value in changed.items() if name not in idle}


def default_sampler(config: Mapping[str, Any]) -> DefaultSampler:
    """Return the sampler of a scheduler's configuration."""
    kind, read = str(config.get("_class_name", "")), with_class_defaults(config)
    name, matched, told = _matching(read)
    if not name:
        spacing = str(config.get("timestep_spacing", "leading"))
        missing = f"{kind or '(none named)'} is not among the samplers here; using {FALLBACK}"
        return DefaultSampler(FALLBACK, spacing if spacing in SPACINGS else "leading", (missing,))
    flags = [spacing for flag, spacing in SPACING_FLAGS.items() if read.get(flag)]
    spacing = flags[0] if flags else str(read.get("timestep_spacing", "linspace"))
    unfollowed = [*_unfollowed(kind, config, read, {*matched, *told}), *_notes(read)]
    if flags and kind in RANGE_OF_TIMES and read["timestep_spacing"] != "linspace":
        unfollowed.append(f"{flags[0]} spacing covers all noise levels, not those of {read['timestep_spacing']} times")
    if spacing not in SPACINGS:
        unfollowed.append(f"timestep_spacing {spacing!r:.40} is unknown; using leading")
        spacing = "leading"
    text = ",".join(f"{field}={value:g}" for field, value in told.items())
    return DefaultSampler(f"{name}:{text}" if text else name, spacing, tuple(unfollowed))


def final_level(config: Mapping[str, Any], sampler: type) -> Final:
    """Return where `sampler` ends with a folder's configuration: the clean level or the first of the table.

    `sampler.ends_by` names the field that decides: "set_alpha_to_one" or "final_sigmas_type". Samplers without it end
    on the clean level.
    """
    own = str(config.get("_class_name", "")) in getattr(sampler, "aliases", ())
    read = with_class_defaults(config) if own else config
    decides = getattr(sampler, "ends_by", "")
    if decides == "set_alpha_to_one":
        return "first" if read.get(decides) is False else "zero"
    return "first" if decides and read.get(decides) == "sigma_min" else "zero"


def _matching(read: Mapping[str, Any]) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    """Return our sampler ("" = none), the fields by which it is told apart, and the values of its own."""
    kind = read.get("_class_name")
    by_alias = ""
    found: list[tuple[int, str, Mapping[str, Any]]] = []
    for name in names(PACKAGE):
        sampler = find(PACKAGE, name)
        own = {field.name for field in fields(sampler)}
        if kind in sampler.aliases:
            by_alias = name
        for entry in getattr(sampler, "schedulers", ()):
            asked = {field: value for field, value in entry.items() if field not in own}
            if all(read.get(field) == value for field, value in asked.items()):
                found.append((len(asked), name, entry))
    name, entry = max(found, key=lambda match: match[0])[1:] if found else (by_alias, {})
    if not name:
        return "", (), {}
    sampler = find(PACKAGE, name)
    own = {field.name: field.default for field in fields(sampler)}
    told = {field: value for field, value in {**read, **entry}.items() if field in own and value != own[field]}
    return name, tuple(entry), _possible(sampler, told)


def _possible(sampler: type, told: dict[str, Any]) -> dict[str, Any]:
    """Return the values, or none where the sampler refuses them."""
    try:
        sampler(**told)
    except (ConfigError, TypeError):
        return {}
    return told


def _unfollowed(kind: str, config: Mapping[str, Any], read: Mapping[str, Any], taken: set[str]) -> list[str]:
    """Return a sentence for each field whose value has another effect in diffusers than here."""
    idle = _idle(kind, read)
    found = []
    for field, value in read.items():
        default = SCHEDULERS.get(kind, {}).get(field)
        if (field, value) == ("variance_type", "learned_range"):
            continue  # DDPM follows it; other samplers leave out the second half of the output
        if not (field in FOLLOWED or field in taken or field in idle or field.startswith("_") or value == default):
            found.append(f"{field} {value!r:.40} is not followed" + ("" if default is None else f"; {default!r} is"))
    if kind == "PNDMScheduler" and not read["skip_prk_steps"]:
        found.append("PNDM's Runge-Kutta warm-up (skip_prk_steps false) is not run; the first step is Heun's")
    if config.get(ZERO_SNR) and ZERO_SNR in unread(config):
        found.append(f"{ZERO_SNR} is set, but {kind} does not read it, in diffusers neither: the noise schedule stays")
    unknown = [field for field in config if field not in KNOWN and not field.startswith("_")]
    return found + [f"{field} is unknown and not followed" for field in sorted(unknown)[:8]]


def _idle(kind: str, read: Mapping[str, Any]) -> set[str]:
    """Return the fields that have no effect in diffusers beside the others' values."""
    idle = {"skip_prk_steps"}  # has its own sentence
    if not any(read.get(flag) for flag in SPACING_FLAGS):
        idle |= {"sigma_min", "sigma_max"}
    if kind == "DPMSolverMultistepScheduler" and read["final_sigmas_type"] == "zero" and read["solver_order"] == 2:
        idle |= {"lower_order_final", "euler_at_final"}  # the step to the clean level is of first order anyway
    return idle


def _notes(read: Mapping[str, Any]) -> list[str]:
    """Return how the sampler differs from diffusers' on purpose."""
    notes = [note for when, note in NOTES if all(read.get(field) == value for field, value in when.items())]
    if str(read["_class_name"]).startswith("FlowMatch") and read.get("shift", 1.0) != 1.0:
        notes.append("the least noisy level is the schedule's own, where diffusers shifts it twice")
    return notes
