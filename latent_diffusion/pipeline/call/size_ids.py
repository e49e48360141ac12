"""SDXL's size conditioning.

Base reads the size of the picture before any scaling, the corner it was cropped at and the size it has now; its refiner
reads an aesthetic score in place of the last. Small original sizes look blurred, crops off 0 cut subjects off.
Reference: Podell et al. 2023, arXiv:2307.01952, section 2.2; names and defaults are diffusers'.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.errors import ConfigError
from latent_diffusion.options.call import Options

__all__ = ["SizeIds"]

PAIRS = ("original_size", "crops_coords_top_left", "target_size")
SCORES = {"aesthetic_score": 6.0, "negative_aesthetic_score": 2.5}  # diffusers' defaults, 1 .. 10 in training
NAMES = (*PAIRS, *(f"negative_{name}" for name in PAIRS), *SCORES)
WITH_TARGET, WITH_SCORE = 6, 5  # numbers read by base and by the refiner
MOST = 100_000  # px, and of a score


@dataclass(frozen=True)
class SizeIds:
    """The size numbers of the prompt and of the negative prompt: px, row before column, and a score."""

    positive: tuple[float, ...]
    negative: tuple[float, ...]

    @classmethod
    def read(cls, components: Components, options: Options, height: int, width: int) -> "SizeIds | None":
        """Return the numbers for a model that reads them, by default those of a whole picture of `height` x `width` px.

        Raises:
            ConfigError: a pair or score that cannot be, or one that this model is not told.
        """
        count = components.size_count
        unread = {0: NAMES, WITH_TARGET: tuple(SCORES), WITH_SCORE: ("target_size", "negative_target_size")}[count]
        refined = SCORES if options.get("refiner") is not None else ()  # the refiner is told those
        for name in unread:
            if options.get(name) is not None and name not in refined:
                raise ConfigError(f"{name}: {components.name} does not use it; leave it out")
        if not count:
            return None
        whole = {"original_size": (height, width), "crops_coords_top_left": (0, 0), "target_size": (height, width)}
        positive = {name: _pair(name, options.get(name), default) for name, default in whole.items()}
        negative = {name: _pair(f"negative_{name}", options.get(f"negative_{name}"), positive[name]) for name in PAIRS}
        scores = [_score(name, options.get(name), default) for name, default in SCORES.items()]
        sides = zip((positive, negative), scores, strict=True)
        return cls(*(_joined(pairs, score if count == WITH_SCORE else None) for pairs, score in sides))

    def rows(self, side: str, count: int) -> Tensor:
        """Return the numbers of one side ("positive" or "negative") for `count` conditions: (count, 6 or 5) float32."""
        numbers = self.positive if side == "positive" else self.negative
        return torch.tensor([numbers], dtype=torch.float32).expand(count, -1)


def _joined(pairs: dict[str, tuple[float, float]], score: float | None) -> tuple[float, ...]:
    head = (*pairs["original_size"], *pairs["crops_coords_top_left"])
    return (*head, *pairs["target_size"]) if score is None else (*head, score)


def _pair(name: str, value: Any, default: tuple[float, float]) -> tuple[float, float]:
    if value is None:
        return default
    pair = tuple(value) if isinstance(value, tuple | list) else ()
    if len(pair) != 2 or not all(type(px) is int and 0 <= px <= MOST for px in pair):
        raise ConfigError(f"{name} {value!r:.50} is not a pair of px from 0 to {MOST}: (rows, columns)")
    return pair


def _score(name: str, value: Any, default: float) -> float:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or abs(value) > MOST:
        raise ConfigError(f"{name} {value!r:.50} is not a number; the model was trained with 1 to 10")
    return float(value)
