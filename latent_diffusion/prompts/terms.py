"""Adapter tags of a prompt, and prompts joined by AND.

    <lora:name>  <lora:name:0.8>  <lora:name:0.8:0.5>    an adapter and its weight; for text model and U-Net apart
    a cat AND a dog :0.5                                 both at once (Liu et al. 2022, arXiv:2206.01714), each weighted

The adapter's order of weights is the A1111 web UI's: the first is the text model's, and the U-Net's too where there is
no second. `AND` counts in the positive prompt only. A number after a colon is a weight only where there is an AND, so
that "in 16:9" stays text.
"""

import re
from dataclasses import dataclass

from latent_diffusion.errors import ConfigError, warn
from latent_diffusion.prompts.syntax import MAX_WEIGHT

__all__ = ["AdapterTag", "Term", "split_terms", "take_adapters", "warn_of_broken_tags", "without_hypernetworks"]

_TAG = re.compile(r"<(?:lora|lyco):([^<>]{1,300})>")
_BROKEN_TAG = re.compile(r"<(?:lora|lyco):[^<>\s]{0,40}")  # where no whole tag is left
_UNREAD = re.compile(r"<hypernet:[^<>]{1,300}>")
_CHOICES = re.compile(r"__[A-Za-z0-9][\w\-/* ]{0,60}__|\{[^{}|]{0,60}\|[^{}]{0,60}\}")
_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r":\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*$")
MAX_TERMS = 32  # each costs a call of the network per step


@dataclass(frozen=True)
class AdapterTag:
    """An adapter that a prompt names."""

    name: str
    text_weight: float
    unet_weight: float


@dataclass(frozen=True)
class Term:
    """One of the prompts joined by AND."""

    text: str
    weight: float


def take_adapters(prompt: str) -> tuple[str, tuple[AdapterTag, ...]]:
    """Return the prompt without its adapter tags, and the tags in order.

    Raises:
        ConfigError: a weight that is no number of the allowed size.
    """
    tags = tuple(_tag(match.group(1)) for match in _TAG.finditer(prompt))
    return (_TAG.sub("", prompt), tags) if tags else (prompt, ())


def warn_of_broken_tags(words: str) -> None:
    """Warn of what looks like syntax and is read as text, in a prompt whose adapters' tags were taken out."""
    if found := _CHOICES.search(words):
        message = f"the prompt's {found.group()!r} is read as text: wildcards and choices are not filled in"
        warn(message)
    if found := _BROKEN_TAG.search(words):
        message = f"the prompt's {found.group()!r} is an incomplete tag and is read as text; write <lora:name:0.8>"
        warn(message)


def without_hypernetworks(words: str) -> str:
    """Return a prompt without `<hypernet:name:weight>`, which A1111 takes out too, with a warning."""
    if found := _UNREAD.search(words):
        message = f"the prompt's {found.group()[:60]!r} is left out: hypernetworks are not read"
        warn(message)
    return _UNREAD.sub("", words)


def _tag(body: str) -> AdapterTag:
    name, *given = body.split(":")
    named = dict(part.split("=", 1) for part in given if "=" in part)
    plain = [part for part in given if "=" not in part]
    if not name.strip() or len(plain) > 2 or set(named) - {"te", "unet"}:
        raise ConfigError(f"prompt: <lora:{body[:80]}> cannot be parsed; write <lora:name> or <lora:name:0.8>")
    text = named.get("te", plain[0] if plain else "1")
    unet = named.get("unet", plain[1] if len(plain) == 2 else text)
    return AdapterTag(name.strip(), _number(text, body), _number(unet, body))


def _number(text: str, body: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not -MAX_WEIGHT <= value <= MAX_WEIGHT:
        raise ConfigError(
            f"prompt: <lora:{body[:80]}> has the weight {text[:20]!r}; use -{MAX_WEIGHT:g} to {MAX_WEIGHT:g}"
        )
    return value


def split_terms(prompt: str) -> tuple[Term, ...]:
    """Return the prompts joined by AND, each with its weight; one of weight 1 where there is no AND.

    Raises:
        ConfigError: more than `MAX_TERMS`.
    """
    pieces = _AND.split(prompt)
    if len(pieces) == 1:
        return (Term(prompt, 1.0),)
    if len(pieces) > MAX_TERMS:
        raise ConfigError(f"the prompt joins {len(pieces)} prompts with AND; at most {MAX_TERMS} are drawn at once")
    return tuple(map(_term, pieces))


def _term(piece: str) -> Term:
    found = _WEIGHT.search(piece)
    if not found:
        return Term(piece.strip(), 1.0)
    weight = float(found.group(1))
    if abs(weight) > MAX_WEIGHT:
        message = f"the weight {found.group(1)[:20]} after AND is beyond {MAX_WEIGHT:g}; {MAX_WEIGHT:g} is used"
        warn(message)
        weight = MAX_WEIGHT if weight > 0 else -MAX_WEIGHT
    return Term(piece[: found.start()].strip(), weight)
