"""A diffusers `scheduler_config.json` <-> noise law and prediction.

That file mixes the noise law, what the network predicts and the default sampler; the last stays a dictionary, which
the pipeline reads and which is written back as it was.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, cast

from latent_diffusion.checkpoint.folder.default_sampler import with_class_defaults
from latent_diffusion.checkpoint.folder.trained_times import TrainedTimes
from latent_diffusion.diffusion.level import NoiseSchedule
from latent_diffusion.diffusion.prediction import Prediction, prediction_named
from latent_diffusion.diffusion.scheduler_form import SchedulerForm
from latent_diffusion.errors import CheckpointError, ConfigError
from latent_diffusion.registry import find, names

__all__ = ["read_schedule", "write_schedule"]

SCHEDULES = "latent_diffusion.schedules"
LARGEST = 1_000_000  # of any number; also keeps NaN and infinity out
NO_CLIPPING = ("DDIMScheduler", "DDPMScheduler")  # these clip x0 to [-1, 1] unless told not to; latents are not bounded
SAMPLING: tuple[tuple[str, float, type], ...] = (
    ("steps_offset", 0, int),
    ("_num_inference_steps", 50, int),
    ("_guidance_scale", 7.5, float),
)
"""What the pipeline reads of the file, checked here where the file has a name."""
ABSENT = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
"""What absent fields are in diffusers, where that is not the law's own default."""


def read_schedule(config: Mapping[str, Any]) -> tuple[NoiseSchedule, Prediction]:
    """Return the noise law and the prediction of a scheduler's configuration; absent fields have diffusers' defaults.

    Raises:
        CheckpointError: a noise law, a prediction or times of a student that we do not have; the field is named.
    """
    if config.get("trained_betas") is not None:
        raise CheckpointError("trained_betas is set; only linear, scaled_linear and squaredcos_cap_v2 betas are read")
    for name, default, number in SAMPLING:
        if _number(config, name, default, number) < 0:
            raise CheckpointError(f"{name} is {config[name]!r}, a number from 0 up was expected")
    read = {**ABSENT, **with_class_defaults(config)}
    law, form = _law_of(read)
    for name, instead in form.refused.items():
        if config.get(name):
            raise CheckpointError(f"{name} is set; {instead}")
    prediction = config.get("prediction_type", form.prediction or "epsilon")
    if form.prediction and prediction != form.prediction:
        raise CheckpointError(
            f"prediction_type is {prediction!r:.50}; with this noise schedule only {form.prediction} is read"
        )
    try:
        schedule = law(**_values(read, law, form))
        named = prediction_named(str(prediction))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    offset, total = config.get("steps_offset", 0), schedule.num_train_timesteps
    if offset >= total:
        raise CheckpointError(f"steps_offset is {offset}, a number below num_train_timesteps, {total}, was expected")
    TrainedTimes.of_model(config, schedule)
    return schedule, named


def write_schedule(
    schedule: NoiseSchedule, prediction: Prediction, sampler: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the configuration of a scheduler: the default `sampler`'s fields with noise law and prediction set.

    Raises:
        CheckpointError: a noise law that diffusers has no name for.
    """
    config, forms = dict(sampler or {}), _forms(type(schedule))
    if not forms:
        raise CheckpointError(f"diffusers has no name for the schedule {type(schedule).__name__}")
    form = next((form for form in forms if form.matches(config)), None)
    if form is None:
        form = forms[0]
        other = "_class_name" in form.marks or any(other.matches(config) for _, other in _laws()[0])
        kept = {} if other else config  # fields of another class, or of another law, have no meaning here
        config = {"_class_name": "DDIMScheduler", **kept, **form.marks}
    if form.prediction and prediction.name != form.prediction:
        law = type(schedule).__name__
        raise CheckpointError(f"diffusers has no name for {law} with {prediction.name}, only with {form.prediction}")
    if config["_class_name"] in NO_CLIPPING:
        config.setdefault("clip_sample", False)
    if form.writes_prediction:
        config["prediction_type"] = prediction.name
    for field in fields(schedule):  # pyright: ignore[reportArgumentType]  # schedules are dataclasses
        name, value = form.name_of(field.name), getattr(schedule, field.name)
        if value is not False or name in config:  # a flag that is not set has no line
            config[name] = value
    return dict(sorted(config.items()))


def _forms(law: type) -> tuple[SchedulerForm, ...]:
    """Return the forms in which diffusers has a noise law."""
    return getattr(law, "schedulers", ())


def _laws() -> tuple[list[tuple[type, SchedulerForm]], list[tuple[type, SchedulerForm]]]:
    """Return all noise laws with their forms: those with a mark of their own, those that `beta_schedule` names."""
    laws = [(law, form) for name in names(SCHEDULES) for law in (find(SCHEDULES, name),) for form in _forms(law)]
    named = [(law, form) for law, form in laws if "beta_schedule" in form.marks]
    return [pair for pair in laws if pair not in named], named


def _law_of(read: Mapping[str, Any]) -> tuple[type, SchedulerForm]:
    """Return the noise law of a configuration and its form; `beta_schedule` comes last, every configuration has one."""
    marked, named = _laws()
    for law, form in (*marked, *named):
        if form.matches(read):
            return law, form
    known = sorted(form.marks["beta_schedule"] for _, form in named)
    raise CheckpointError(f"unknown beta_schedule {read['beta_schedule']!r}; there are {', '.join(known)}")


def _values(read: Mapping[str, Any], law: type, form: SchedulerForm) -> dict[str, Any]:
    """Return the law's arguments; fields that the file does not have stay at their defaults."""
    values: dict[str, Any] = {}
    for field in fields(law):
        name, default = form.name_of(field.name), cast(Any, field.default)
        if name in read:
            flag = isinstance(default, bool)
            values[field.name] = bool(read[name]) if flag else _number(read, name, default, type(default))
    return values


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
