"""A diffusers `scheduler_config.json` <-> noise law and prediction.

That file mixes the noise law, what the network predicts and the default sampler; the last stays a dictionary, which
the pipeline reads and which is written back as it was.
"""

from collections.abc import Mapping
from typing import Any

from latent_diffusion.checkpoint.folder.default_sampler import with_class_defaults
from latent_diffusion.diffusion.level import NoiseSchedule
from latent_diffusion.diffusion.prediction import FLOW, Prediction, prediction_named
from latent_diffusion.errors import CheckpointError, ConfigError
from latent_diffusion.schedules.cosine import CosineSchedule
from latent_diffusion.schedules.linear import LinearSchedule
from latent_diffusion.schedules.rectified_flow import RectifiedFlow
from latent_diffusion.schedules.scaled_linear import ScaledLinearSchedule

__all__ = ["read_schedule", "write_schedule"]

LARGEST = 1_000_000  # of any number; also keeps NaN and infinity out
NO_CLIPPING = ("DDIMScheduler", "DDPMScheduler")  # these clip x0 to [-1, 1] unless told not to; latents are not bounded
SAMPLING: tuple[tuple[str, float, type], ...] = (
    ("steps_offset", 0, int),
    ("_num_inference_steps", 50, int),
    ("_guidance_scale", 7.5, float),
)
"""What the pipeline reads of the file, checked here where the file has a name."""


def read_schedule(config: Mapping[str, Any]) -> tuple[NoiseSchedule, Prediction]:
    """Return the noise law and the prediction of a scheduler's configuration; absent fields have diffusers' defaults.

    Raises:
        CheckpointError: a noise law or a prediction that we do not have; the message names the field.
    """
    if config.get("trained_betas") is not None:
        raise CheckpointError("trained_betas is set; only linear, scaled_linear and squaredcos_cap_v2 betas are read")
    for name, default, number in SAMPLING:
        if _number(config, name, default, number) < 0:
            raise CheckpointError(f"{name} is {config[name]!r}, a number from 0 up was expected")
    if is_flow(config):
        return _read_flow(config)
    config = with_class_defaults(config)
    kind = config.get("beta_schedule", "linear")
    constants = {
        "num_train_timesteps": _number(config, "num_train_timesteps", 1000, int),
        "zero_terminal_snr": bool(config.get("rescale_betas_zero_snr", False)),
    }
    try:
        if kind == "squaredcos_cap_v2":
            schedule: NoiseSchedule = CosineSchedule(**constants)
        elif kind in ("linear", "scaled_linear"):
            law = LinearSchedule if kind == "linear" else ScaledLinearSchedule
            start, end = _number(config, "beta_start", 1e-4, float), _number(config, "beta_end", 0.02, float)
            schedule = law(**constants, beta_start=start, beta_end=end)
        else:
            raise CheckpointError(f"unknown beta_schedule {kind!r}; there are linear, scaled_linear, squaredcos_cap_v2")
        return schedule, prediction_named(str(config.get("prediction_type", "epsilon")))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def write_schedule(
    schedule: NoiseSchedule, prediction: Prediction, sampler: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the configuration of a scheduler: the default `sampler`'s fields with noise law and prediction set.

    Raises:
        CheckpointError: a noise law that diffusers has no name for.
    """
    if isinstance(schedule, RectifiedFlow):
        return _write_flow(schedule, prediction, sampler or {})
    config = {"_class_name": "DDIMScheduler", **(sampler or {})}
    if config["_class_name"] in NO_CLIPPING:
        config.setdefault("clip_sample", False)
    if isinstance(schedule, LinearSchedule | ScaledLinearSchedule):
        kind = "linear" if isinstance(schedule, LinearSchedule) else "scaled_linear"
        config |= {"beta_schedule": kind, "beta_start": schedule.beta_start, "beta_end": schedule.beta_end}
    elif isinstance(schedule, CosineSchedule):
        config |= {"beta_schedule": "squaredcos_cap_v2"}
    else:
        raise CheckpointError(f"diffusers has no name for the schedule {type(schedule).__name__}")
    config |= {"num_train_timesteps": schedule.num_train_timesteps, "prediction_type": prediction.name}
    if schedule.zero_terminal_snr or "rescale_betas_zero_snr" in config:
        config["rescale_betas_zero_snr"] = schedule.zero_terminal_snr
    return dict(sorted(config.items()))


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether diffusers would take this configuration for a rectified flow."""
    return str(config.get("_class_name", "")).startswith("FlowMatch") or config.get("use_flow_sigmas") is True


def _read_flow(config: Mapping[str, Any]) -> tuple[NoiseSchedule, Prediction]:
    """Return flow and prediction; a shift that depends on the picture's size is not read."""
    if config.get("use_dynamic_shifting"):
        raise CheckpointError("use_dynamic_shifting is set; only a rectified flow with one shift is read")
    said = config.get("prediction_type", FLOW.name)
    if said != FLOW.name:
        raise CheckpointError(f"prediction_type is {said!r:.50}, a rectified flow's model says {FLOW.name}")
    matched = str(config.get("_class_name", "")).startswith("FlowMatch")
    shift = _number(config, "shift" if matched else "flow_shift", 1.0, float)
    try:
        return RectifiedFlow(_number(config, "num_train_timesteps", 1000, int), shift), FLOW
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def _write_flow(schedule: RectifiedFlow, prediction: Prediction, sampler: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of one of diffusers' flow-matching schedulers, or of another told that it is a flow."""
    if prediction != FLOW:
        raise CheckpointError(
            f"diffusers has no name for a rectified flow with {prediction.name}, only with {FLOW.name}"
        )
    config: dict[str, Any] = dict(sampler)
    if not is_flow(config):
        config = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    if str(config["_class_name"]).startswith("FlowMatch"):
        config["shift"] = schedule.shift
    else:
        config |= {"flow_shift": schedule.shift, "prediction_type": FLOW.name}
    return dict(sorted({**config, "num_train_timesteps": schedule.num_train_timesteps}.items()))


def _number(config: Mapping[str, Any], name: str, default: float, kind: type) -> Any:
    value = config.get(name, default)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not abs(value) <= LARGEST
        or kind(value) != value
    ):
        raise CheckpointError(f"{name} is {value!r}, {'an integer' if kind is int else 'a number'} was expected")
    return kind(value)
