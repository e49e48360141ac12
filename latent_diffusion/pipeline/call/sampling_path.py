"""From names to a sampler and the noise levels it visits."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.folder.default_sampler import final_level
from latent_diffusion.checks import check_flag, check_number
from latent_diffusion.diffusion.level import CLEAN_TIME, Level, Sampler
from latent_diffusion.diffusion.spacing import SPACINGS, at_sigmas, at_times, levels
from latent_diffusion.errors import ConfigError
from latent_diffusion.options.call import Options
from latent_diffusion.pipeline.call.words import number, split_name, values_told
from latent_diffusion.provenance.other_names import sampler_of, spacing_of
from latent_diffusion.registry import find, names, nearest

__all__ = ["CUSTOM", "SamplingPath"]

CUSTOM = "custom"
"""Name of the spacing that the caller's own `timesteps` or `sigmas` are."""

PACKAGE = "latent_diffusion.samplers"
MAX_LEVELS = 1000


@dataclass(frozen=True)
class SamplingPath:
    """The sampler and the noise levels it visits."""

    sampler: str  # our name, with fields after a colon: "restart:repeats=2"
    spacing: str  # our name, or "custom"
    eta: float  # share of noise; 0 where the sampler has none
    spacing_rho: float | None = None  # exponent of karras and polyexponential spacing, None = theirs
    timesteps: tuple[float, ...] | None = None  # of a custom spacing
    sigmas: tuple[float, ...] | None = None
    discard_next_to_last: bool = False  # one level more, of which the last before the end is left out

    @classmethod
    def read(cls, components: Components, options: Options, sampler: str, spacing: str) -> "SamplingPath":
        """Return what the options say; `sampler` and `spacing` are the model's own choices.

        Raises:
            ConfigError: an unknown name, two that contradict each other, or a number that cannot be.
        """
        asked = options.get("sampler")
        name, implied = _sampler(sampler if asked is None else asked)
        kind, told = split_name("sampler", name)
        wanted = options.get("spacing")
        if wanted is None:
            wanted = implied or spacing
        aligned = "ays_sdxl" if components.size_count else "ays_sd1"
        ours = spacing_of(wanted, kind, aligned) if isinstance(wanted, str) else None
        if ours is None and wanted != CUSTOM:
            known = (*SPACINGS, CUSTOM)
            raise ConfigError(
                f"unknown spacing {wanted!r:.50}; there are {', '.join(known)}{nearest(str(wanted), known)}"
            )
        if implied and ours != implied:
            raise ConfigError(f"sampler {asked!r} implies {implied} spacing, but spacing is {wanted!r}; give one")
        custom = {what: _numbers(what, options.get(what)) for what in ("timesteps", "sigmas")}
        if all(custom.values()) or (any(custom.values()) and options.get("spacing") not in (None, CUSTOM)):
            raise ConfigError("timesteps, sigmas and spacing each choose the visited levels; give one of them")
        if wanted == CUSTOM and not any(custom.values()):
            raise ConfigError("spacing 'custom' needs timesteps or sigmas")
        rho = options.get("spacing_rho")
        rho = None if rho is None else number("spacing_rho", rho)
        discard = check_flag("discard_next_to_last", options.get("discard_next_to_last") or False)
        if discard and any(custom.values()):
            raise ConfigError("discard_next_to_last has no effect on levels of your own; leave it out")
        path = cls(
            sampler=name,
            spacing=CUSTOM if any(custom.values()) else str(ours),
            eta=_eta(kind, told, options.get("eta")),
            spacing_rho=rho,
            discard_next_to_last=discard,
            **custom,
        )
        path.build_sampler()
        count = options.get("num_inference_steps")
        if path.steps is not None and count not in (None, path.steps):
            raise ConfigError(f"num_inference_steps {count} with {path.steps} custom levels; leave one of them out")
        return path

    @property
    def steps(self) -> int | None:
        """Number of steps of a custom spacing, else None: any."""
        custom = self.timesteps or self.sigmas
        return len(custom) if custom else None

    def build_sampler(self) -> Sampler:
        """Return the sampler.

        Raises:
            ConfigError: a field it does not have, or a value that cannot be.
        """
        name, told = split_name("sampler", self.sampler)
        eta = {"eta": self.eta} if "eta" in _fields(name) else {}
        return find(PACKAGE, name)(**{**values_told(PACKAGE, name, told), **eta})

    def levels(self, components: Components, steps: int) -> Sequence[Level]:
        """Return the noise levels to visit in `steps` steps, the one to end in last.

        Raises:
            ConfigError: a spacing that the noise law has no place for, or a custom one of another number of steps.
        """
        config, schedule = components.scheduler_config, components.schedule
        sampler = self.build_sampler()
        final = final_level(config, type(sampler))
        if self.steps is not None and steps != self.steps:
            raise ConfigError(f"{steps} steps of a custom spacing with {self.steps}; leave the number of steps out")
        if self.timesteps is not None:
            return [*at_times(schedule, self.timesteps), schedule.level(0 if final == "first" else CLEAN_TIME, steps)]
        if self.sigmas is not None:
            return [*at_sigmas(schedule, self.sigmas), schedule.level(CLEAN_TIME, steps)]
        return levels(
            schedule,
            self.spacing,
            steps,
            steps_offset=int(config.get("steps_offset", 0)),
            final=final,
            intervals=sampler.intervals,
            fractional=sampler.fractional,
            rho=self.spacing_rho,
            discard_next_to_last=self.discard_next_to_last,
        )


def _sampler(text: object) -> tuple[str, str | None]:
    """Return our name with its fields, and the spacing that a name like "DPM++ 2M Karras" implies."""
    if not isinstance(text, str):
        raise ConfigError(f"sampler {text!r:.50} is not a name")
    name, colon, rest = text.partition(":")
    found = sampler_of(name)
    if found is None:
        known = names("latent_diffusion.samplers")
        raise ConfigError(f"unknown sampler {name!r:.50}; there are {', '.join(known)}{nearest(name, known)}")
    return found[0] + colon + rest, found[1]


def _fields(sampler: str) -> dict[str, Any]:
    """Return the fields of a sampler, with their defaults."""
    return {field.name: field.default for field in fields(find(PACKAGE, sampler))}


def _eta(name: str, told: dict[str, str], asked: float | None) -> float:
    """Return the share of noise: asked for, given with the name, or the sampler's own; 0 where it has none."""
    own = _fields(name)
    if asked is not None:
        asked = check_number("eta", asked, 1.0)
    if "eta" not in own:
        if asked:
            raise ConfigError(f"sampler {name!r} has no eta; use --sampler ddim, or eta 0")
        return 0.0
    given = values_told(PACKAGE, name, told).get("eta")
    if asked is None:
        return float(own["eta"] if given is None else given)
    if given is not None and given != asked:
        raise ConfigError(f"sampler {name}:eta={given:g} and eta {asked:g} contradict each other; give one")
    return asked


def _numbers(what: str, values: Sequence[float] | None) -> tuple[float, ...] | None:
    """Return custom times or sigmas; a last sigma of 0, the clean latent, is left out since it is always there."""
    if values is None:
        return None
    numbers = tuple(values) if isinstance(values, Sequence) and not isinstance(values, str) else ()
    if what == "sigmas" and len(numbers) > 1 and numbers[-1] == 0:
        numbers = numbers[:-1]
    good = [v for v in numbers if isinstance(v, int | float) and not isinstance(v, bool)]
    if not 1 <= len(numbers) <= MAX_LEVELS or len(good) != len(numbers):
        raise ConfigError(f"{what} must be a list of 1 to {MAX_LEVELS} numbers, noisiest first, not {values!r:.80}")
    return tuple(float(v) for v in numbers)
