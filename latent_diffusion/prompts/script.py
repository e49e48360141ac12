"""One prompt, parsed: its text at each step (see `docs/prompts.md`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from latent_diffusion.errors import ConfigError, warn
from latent_diffusion.prompts.schedule import texts_by_step
from latent_diffusion.prompts.states import Text
from latent_diffusion.prompts.terms import (
    AdapterTag,
    Term,
    split_terms,
    take_adapters,
    warn_of_broken_tags,
    without_hypernetworks,
)

__all__ = ["Key", "Line", "Script", "Terms", "lines_of", "read_script"]

MAX_TEXTS = 200  # in the course of one picture; the U-Net keeps what it makes of each
Key = Text | int
"""Where a condition is found: by its text, or by its row in the embeddings given."""
Terms = tuple[tuple[Key, float], ...]
"""The prompts joined by AND, each with its weight; without AND one prompt of weight 1."""


@dataclass(frozen=True)
class Script:
    """One prompt, parsed."""

    steps: tuple[Terms, ...]  # one a step
    tags: tuple[AdapterTag, ...] = ()  # the adapters that it names


@dataclass(frozen=True)
class Line:
    """One prompt and its negative prompt from a step on."""

    first: int  # step, from 0
    terms: Terms
    negative: Key | None  # None where nothing needs it


def read_script(text: str, second: str | None, steps: int, *, syntax: bool, negative: bool) -> Script:
    """Return a prompt, parsed for each of `steps` steps.

    Args:
        text: the prompt.
        second: what SDXL's second text encoder reads instead; it has schedules too, but no AND and no tags.
        steps: number of steps that are run.
        syntax: False reads every character as text.
        negative: a negative prompt has no AND ("AND" is text there), and adapter tags in it have no effect.

    Raises:
        ConfigError: an adapter tag that cannot be read, or too many terms or texts.
    """
    if not syntax:
        return Script((((Text(text, second), 1.0),),) * steps)
    words, tags = take_adapters(text)
    words = without_hypernetworks(words)
    warn_of_broken_tags(words)
    if negative and tags:
        names = ", ".join(tag.name for tag in tags)
        message = f"adapters in a negative prompt have no effect: {names}; name them in the prompt"
        warn(message)
        tags = ()
    firsts = texts_by_step(words, steps)
    seconds = (None,) * steps if second is None else texts_by_step(second, steps)
    pairs = list(zip(firsts, seconds, strict=True))
    said: dict[tuple[str, str | None], Terms] = {}
    for first, other in dict.fromkeys(pairs):
        terms = (Term(first, 1.0),) if negative else split_terms(first)
        said[first, other] = tuple((Text(term.text, other), term.weight) for term in terms)
    if len(said) > MAX_TEXTS:
        raise ConfigError(f"the prompt has {len(said)} texts in {steps} steps; at most {MAX_TEXTS} are read")
    return Script(tuple(said[pair] for pair in pairs), tags)


def lines_of(positive: Sequence[Terms], negative: Sequence[Key | None]) -> tuple[Line, ...]:
    """Return what holds at each step as lines, neighbours alike joined."""
    steps = list(zip(positive, negative, strict=True))
    starts = [next(places) for _, places in groupby(range(len(steps)), key=steps.__getitem__)]
    return tuple(Line(first, *steps[first]) for first in starts)
