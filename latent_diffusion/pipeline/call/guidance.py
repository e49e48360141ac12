"""Text forms of guidance: "apg:scale=10,eta=0.2" for an object of `guidance/`, and back.

A text names a file of `guidance/` and sets its numbers. `start`, `stop` (shares of the steps), `sigma_low` and
`sigma_high` (noise over signal) may be set for each and say when it is on. Several texts act together; where none of
them weighs the prompt against the negative prompt, classifier-free guidance does so at `guidance_scale`.
"""

import math
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields

from latent_diffusion.diffusion.guidance import Combined, Guidance, Models
from latent_diffusion.diffusion.interval import Interval
from latent_diffusion.errors import ConfigError
from latent_diffusion.guidance.cfg import CFG
from latent_diffusion.guidance.rescale import Rescale
from latent_diffusion.pipeline.call.words import number, split_name, text_of, texts_of, values_told
from latent_diffusion.registry import find

__all__ = ["Chosen", "choose_guidance"]

PACKAGE = "latent_diffusion.guidance"
WHEN = {"start": 0.0, "stop": 1.0, "sigma_low": 0.0, "sigma_high": math.inf}  # fields of `Interval` and their defaults


@dataclass(frozen=True)
class Chosen:
    """The guidance of a call."""

    guidance: Guidance
    scale: float  # of what weighs the prompt against the negative; 1 where nothing does
    texts: tuple[str, ...] | None  # what was asked for, every number written out; None = classifier-free guidance


def choose_guidance(
    asked: object, scale: float | None, default_scale: float, rescale: float, interval: object, models: Models
) -> Chosen:
    """Return the guidance of a call.

    Args:
        asked: None, a text, several texts, or a `Guidance`.
        scale: the option `guidance_scale`; None = not given.
        default_scale: the model's.
        rescale: the option `guidance_rescale`.
        interval: the option `guidance_interval`: None, or two shares of the steps between which all of it is on.
        models: opens those that texts name, as "autoguidance:model=...".

    Raises:
        ConfigError: what cannot be read or cannot be together.
    """
    if isinstance(asked, Guidance):
        if scale is not None:
            raise ConfigError("`guidance` is an object, which has its own scale; leave out `guidance_scale`")
        guidance, texts = asked, tuple(_written(asked, WHEN))
    else:
        named = texts_of("guidance", asked, "a Guidance")
        parts = [_read(text, _or(scale, default_scale), models) for text in named]
        texts = tuple(text for part in parts for text in _written(part, WHEN)) or None
        if not any(leaf.weighs for part in parts for leaf, _ in _leaves(part, WHEN)):
            parts.insert(0, CFG(_or(scale, default_scale)))
        guidance = parts[0] if len(parts) == 1 else Combined(tuple(parts))
    weighing = [leaf for leaf, _ in _leaves(guidance, WHEN) if leaf.weighs]
    used = float(getattr(weighing[0], "scale", 1.0)) if weighing else 1.0
    if rescale:
        guidance = guidance + Rescale(rescale)
    if interval is not None:
        guidance = Interval(guidance, *_pair(interval))
    return Chosen(guidance, used, texts)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _pair(interval: object) -> tuple[float, float]:
    if not isinstance(interval, list | tuple) or len(interval) != 2:
        raise ConfigError(f"guidance_interval {interval!r:.80}; give two shares of the steps, such as (0.1, 0.8)")
    start, stop = (number("guidance_interval", value) for value in interval)
    return start, stop


def _read(text: str, scale: float, models: Models) -> Guidance:
    """Return the guidance that "name:key=value,key=value" tells; `scale` is for those that weigh and tell none."""
    name, told = split_name("guidance", text)
    kind = find(PACKAGE, name)
    when = {key: number(key, told.pop(key)) for key in WHEN if key in told}
    values = {**({"scale": scale} if kind.weighs else {}), **values_told(PACKAGE, name, told, tuple(WHEN))}
    try:
        guidance = kind.from_values(values, models)
    except TypeError:
        missing = [f.name for f in fields(kind) if f.default is MISSING and f.name not in values]
        needs = f"guidance {name!r} needs {' and '.join(missing)}, which a text cannot give; pass the object"
        raise ConfigError(needs) from None
    return Interval(guidance, **when) if when else guidance


def _leaves(guidance: Guidance, when: dict[str, float]) -> Iterator[tuple[Guidance, dict[str, float]]]:
    """Yield the guidances inside, each with the interval in which it is on."""
    if isinstance(guidance, Combined):
        for part in guidance.parts:
            yield from _leaves(part, when)
    elif isinstance(guidance, Interval):
        both = {key: (min if key in ("stop", "sigma_high") else max)(when[key], getattr(guidance, key)) for key in WHEN}
        yield from _leaves(guidance.guidance, both)
    else:
        yield guidance, when


def _written(guidance: Guidance, when: dict[str, float]) -> Iterator[str]:
    """Yield the texts that `_read` makes the guidance of; what no text can say is left out, and missed there."""
    for leaf, on in _leaves(guidance, when):
        yield text_of(PACKAGE, leaf, {key: value for key, value in on.items() if value != WHEN[key]})
