"""The times that a distilled student is trained at, where these are few, and whether it is drawn at others.

They are those of a spacing and a number of steps. A model's `scheduler_config.json` has them in private fields, which
diffusers ignores; an adapter's file has them in its header.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.diffusion.level import Level, NoiseSchedule
from latent_diffusion.diffusion.spacing import levels
from latent_diffusion.diffusion.time_spacing import TIME_SPACINGS
from latent_diffusion.errors import CheckpointError, warn
from latent_diffusion.registry import nearest

__all__ = ["TrainedTimes", "check_times", "without_times"]

MODEL = ("_trained_spacing", "_trained_steps", "_usage_hint")
HEADER = ("latent_diffusion.trained_spacing", "latent_diffusion.trained_steps", "modelspec.usage_hint")
NEAR = 0.5  # a time that is rounded to a trained one is no other
SHOWN = 4  # times in a message
LONGEST = 200  # characters of a hint


@dataclass(frozen=True)
class TrainedTimes:
    """The times of `steps` steps of a spacing."""

    spacing: str
    steps: int
    usage: str  # how to draw at them: "sampler LCM, spacing lcm, 4 steps, guidance scale 1"

    @classmethod
    def of_model(cls, config: Mapping[str, Any], schedule: NoiseSchedule) -> "TrainedTimes | None":
        """Return those of a scheduler's configuration; None = it names none: the model is trained at all times.

        Raises:
            CheckpointError: a spacing or a number of steps that cannot be.
        """
        return _read(config, MODEL, schedule, "")

    @classmethod
    def of_adapter(cls, header: Mapping[str, str], schedule: NoiseSchedule, file: Path) -> "TrainedTimes | None":
        """Return those of an adapter's header; None and errors as for `of_model`."""
        return _read(header, HEADER, schedule, f"{file}: ")

    def in_model(self) -> dict[str, Any]:
        """Return the fields of a scheduler's configuration."""
        return dict(zip(MODEL, astuple(self), strict=True))

    def in_header(self) -> dict[str, str]:
        """Return the fields of an adapter's header."""
        return dict(zip(HEADER, map(str, astuple(self)), strict=True))

    def times(self, schedule: NoiseSchedule) -> list[float]:
        """Return the times, falling."""
        return [level.t for level in levels(schedule, self.spacing, self.steps)[:-1]]

    def others(self, schedule: NoiseSchedule, visited: Sequence[Level]) -> list[float]:
        """Return the times of the visited levels, the one to end in left out, that are not among these."""
        trained = self.times(schedule)
        return [level.t for level in visited[:-1] if all(abs(level.t - t) > NEAR for t in trained)]


def check_times(parts: Components, visited: Sequence[Level]) -> None:
    """Warn where a student is to be drawn at times that it was not trained at; `visited` has the level to end in."""
    student = TrainedTimes.of_model(parts.scheduler_config, parts.schedule)
    others = [] if student is None else student.others(parts.schedule, visited)
    if student is None or not others:
        return
    name = " with ".join([parts.name, *(adapter.name for adapter in parts.adapters)])
    trained = f"the times of {_steps(student.steps)} of {student.spacing} spacing"
    shown = ", ".join(f"{t:g}" for t in others[:SHOWN]) + (", ..." if len(others) > SHOWN else "")
    warn(
        f"{name} was trained at {trained} alone, and {len(others)} of {_steps(len(visited) - 1)} of this call are at "
        f"others ({shown}); draw with {student.usage}"
    )


def without_times(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a scheduler's configuration without the times that its model was trained at."""
    return {name: value for name, value in config.items() if name not in MODEL}


def _read(
    values: Mapping[str, Any], names: tuple[str, str, str], schedule: NoiseSchedule, where: str
) -> TrainedTimes | None:
    spacing, steps, usage = (values.get(name) for name in names)
    if spacing is None and steps is None:
        return None
    if not isinstance(spacing, str) or spacing not in TIME_SPACINGS:
        known = ", ".join(TIME_SPACINGS)
        raise CheckpointError(
            f"{where}{names[0]} is {spacing!r:.50}{nearest(str(spacing), TIME_SPACINGS)}; use one of {known}"
        )
    most, count = schedule.num_train_timesteps, str(steps)
    if not (count.isascii() and count.isdecimal() and len(count) < 10 and 1 <= int(count) <= most):
        raise CheckpointError(f"{where}{names[1]} is {steps!r:.50}, a number from 1 to {most} was expected")
    told = " ".join(str(usage or "").split())[:LONGEST]
    return TrainedTimes(spacing, int(count), told or f"spacing {spacing}, {_steps(int(count))}")


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"
