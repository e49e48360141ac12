"""Learning rates and ends of weights by patterns in their paths, and which weights of a whole model are trained."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from pydantic import Field, field_validator
from torch import nn

from latent_diffusion.adapters.model_parts import parts_of, unused_layers
from latent_diffusion.checkpoint.components import Components
from latent_diffusion.config import Section
from latent_diffusion.errors import ConfigError

__all__ = ["TrainSettings", "WeightRule", "choose_weights", "ends", "learning_rates"]

PRESETS = {"all": "", "cross_attention": r"^text_encoder|\.attn2\."}
"""Weights by name: all, or the U-Net's cross-attentions (Kumari et al. 2023, arXiv:2212.04488, section 3.2: keys and
values); text encoders are trained whole in both."""


class WeightRule(Section):
    """Other numbers for the weights whose path a pattern matches."""

    match: str
    """Regular expression, searched in the path of a weight: "part.path.of.layer.weight"."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of these weights."""
    until: float | None = Field(default=None, gt=0, lt=1)
    """Share of the updates after which these weights are frozen; null: they are trained to the end."""

    @field_validator("match")
    @classmethod
    def _compiles(cls, match: str) -> str:
        try:
            re.compile(match)
        except re.error as error:
            raise ValueError(f"{match!r} is not a regular expression: {error}") from None
        return match


class TrainSettings(Section):
    """The `objective.train:` section: what of a whole model is trained."""

    parts: list[Literal["unet", "text_encoder", "text_encoder_2"]] = Field(default=["unet"], min_length=1)
    """Networks that are trained."""
    layers: Literal["all", "cross_attention"] | list[str] = "all"
    """Their weights: all, the U-Net's cross-attentions, or regular expressions searched in "part.path.of.weight"."""
    rules: list[WeightRule] = Field(default_factory=list)
    """Other learning rates, and ends, by pattern; the last rule that matches holds."""

    @field_validator("parts")
    @classmethod
    def _once(cls, parts: list[str]) -> list[str]:
        if len(set(parts)) != len(parts):
            raise ValueError(f"{parts} names one twice")
        return parts


def choose_weights(model: Components, settings: TrainSettings) -> dict[str, nn.Module]:
    """Return the networks that are trained, by part; of all weights of the model only the chosen ones need gradients.

    Weights that do not reach the U-Net's prediction are left out, as are those that need none already.

    Raises:
        ConfigError: a part that the model lacks, or a pattern or part without any weight.
    """
    there = parts_of(model)
    patterns = [PRESETS[settings.layers]] if isinstance(settings.layers, str) else settings.layers
    chosen: dict[str, nn.Module] = {}
    paths: list[str] = []
    for part in settings.parts:
        if part not in there:
            raise ConfigError(f"objective.train.parts: {model.name} has no {part}; it has {', '.join(there)}")
        chosen[part] = there[part]
        mine = list(_matching(part, there[part], patterns, unused_layers(model, part)))
        if not mine:
            raise ConfigError(f"objective.train: no weight of {part} is chosen by layers {settings.layers}")
        paths += mine
    wanted = {*paths}
    for part, network in there.items():
        for name, weight in network.named_parameters():
            weight.requires_grad_(f"{part}.{name}" in wanted)
    _check_patterns(settings, paths)
    return chosen


def _matching(part: str, network: nn.Module, patterns: Sequence[str], unused: tuple[str, ...]) -> Iterator[str]:
    for name, weight in network.named_parameters():
        path = f"{part}.{name}"
        if weight.requires_grad and not name.startswith(unused) and any(re.search(p, path) for p in patterns):
            yield path


def _check_patterns(settings: TrainSettings, paths: Sequence[str]) -> None:
    """Refuse a pattern that matches nothing: a slip in it would be a setting without effect."""
    layers = [] if isinstance(settings.layers, str) else [("layers", pattern) for pattern in settings.layers]
    for place, pattern in [*layers, *(("rules", rule.match) for rule in settings.rules)]:
        if not any(re.search(pattern, path) for path in paths):
            raise ConfigError(f"objective.train.{place}: {pattern!r} matches no weight, such as {paths[0]}")


def learning_rates(rules: Iterable[WeightRule], names: Iterable[str]) -> dict[str, float]:
    """Return the peak learning rate of the weights for which a rule has one, by path."""
    rules = list(rules)
    found = {name: [r.learning_rate for r in rules if r.learning_rate and re.search(r.match, name)] for name in names}
    return {name: rates[-1] for name, rates in found.items() if rates}


def ends(rules: Iterable[WeightRule], names: Sequence[str]) -> dict[str, float]:
    """Return the share of the updates after which a weight is frozen, for those with a rule that ends them, by path.

    Raises:
        ConfigError: every weight has an end.
    """
    rules = list(rules)
    found = {name: [rule.until for rule in rules if rule.until and re.search(rule.match, name)] for name in names}
    last = {name: shares[-1] for name, shares in found.items() if shares}
    if names and len(last) == len(names):
        raise ConfigError("objective: rules freeze every weight before the run ends; leave `until` out, or lower steps")
    return last
