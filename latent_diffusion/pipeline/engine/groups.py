"""Images that can share a batch, the conditions of each group, and from which step on.

Prompts of one call may differ in length, in the number of terms joined by AND, in their schedules and adapters. Padding
them to one shape would change their pictures. Images of one shape therefore form a group with its own batch, and an
image's picture does not depend on its neighbours. Plain prompts are one group.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.conditioning import Blend, Conditioning
from latent_diffusion.diffusion.level import Denoise, Level
from latent_diffusion.diffusion.variance import Estimate, Ranged, parted, ranged, with_range
from latent_diffusion.prompts.script import Key, Line, Terms
from latent_diffusion.prompts.terms import AdapterTag

__all__ = ["Group", "GroupConditions", "KeyConditions", "change_at", "group_prompts", "join_rows"]

KeyConditions = tuple[Mapping[Key, Conditioning], Mapping[Key, Conditioning], Conditioning | None]
"""Conditions (1 row each) of the positive and of the negative keys, and of the empty prompt."""


@dataclass(frozen=True)
class GroupConditions:
    """The conditions of a group of n images."""

    prompt: Conditioning | Blend  # n rows
    negative: Conditioning | None  # n rows; None where nothing needs it
    empty: Conditioning | None = None  # n rows: the empty prompt, where a guidance asks for it

    def map(self, change: Callable[[Conditioning], Conditioning]) -> "GroupConditions":
        """Return the same with every condition changed."""
        others = (cond and change(cond) for cond in (self.negative, self.empty))
        prompt = self.prompt.map(change) if isinstance(self.prompt, Blend) else change(self.prompt)
        return GroupConditions(prompt, *others)


@dataclass(frozen=True)
class Group:
    """Images of one shape."""

    rows: tuple[int, ...]  # their places in the call
    components: Components  # with the adapters that their prompts ask for
    conditions: tuple[GroupConditions, ...]
    timeline: tuple[tuple[int, int], ...]  # (first step, which of `conditions`), the first at step 0


def group_prompts(
    scripts: Sequence[tuple[Line, ...]],
    tags: Sequence[tuple[AdapterTag, ...]],
    models: Mapping[tuple[AdapterTag, ...], tuple[Components, KeyConditions]],
    images: int,
) -> tuple[Group, ...]:
    """Return the groups of all images.

    Args:
        scripts: the parsed texts of P prompts.
        tags: the adapters that each names.
        models: for each set of adapters, the model and the conditions it makes of all keys.
        images: number of images of each prompt.
    """

    def shape(k: int) -> tuple:
        positives, negatives, _ = models[tags[k]][1]
        return tags[k], tuple(
            (
                line.first,
                tuple((_length(positives[key]), weight) for key, weight in line.terms),
                None if line.negative is None else _length(negatives[line.negative]),
            )
            for line in scripts[k]
        )

    found: dict[tuple, list[int]] = {}
    for k in range(len(scripts)):
        found.setdefault(shape(k), []).append(k)
    return tuple(_group(members, scripts, *models[tags[members[0]]], images) for members in found.values())


def _group(
    members: list[int],
    scripts: Sequence[tuple[Line, ...]],
    components: Components,
    conditions: KeyConditions,
    images: int,
) -> Group:
    seen: dict[tuple, int] = {}
    timeline = []
    for lines in zip(*(scripts[k] for k in members), strict=True):  # of all members, from one step on
        key = tuple((line.terms, line.negative) for line in lines)
        timeline.append((lines[0].first, seen.setdefault(key, len(seen))))
    rows = tuple(k * images + j for k in members for j in range(images))
    return Group(rows, components, tuple(_group_conditions(key, conditions, images) for key in seen), tuple(timeline))


def _group_conditions(
    said: tuple[tuple[Terms, Key | None], ...], conditions: KeyConditions, images: int
) -> GroupConditions:
    """Return what `said`, one entry a prompt, tells the network."""
    positives, negatives, empty = conditions
    columns = list(zip(*(terms for terms, _ in said), strict=True))  # one term of all prompts each
    terms = tuple((Conditioning.cat([positives[key] for key, _ in column]), column[0][1]) for column in columns)
    negative = [negatives[key] for _, key in said if key is not None]
    return GroupConditions(
        terms[0][0] if len(terms) == 1 and terms[0][1] == 1.0 else Blend(terms),
        Conditioning.cat(negative) if negative else None,
        empty and empty.repeat_interleave(len(said)),
    ).map(lambda cond: cond.repeat_interleave(images))


def _length(cond: Conditioning) -> int:
    return cond.context.shape[1]


def change_at(parts: Sequence[Denoise], timeline: Sequence[tuple[int, int]], levels: Sequence[Level]) -> Denoise:
    """Return the denoiser that is, from the level of each first step on, the part that the timeline names there.

    It goes by the noise level and not by a count of calls: so it holds for samplers that look ahead or go back, and
    keeps no state.
    """
    if len(timeline) == 1:
        return parts[0]
    starts = [levels[min(first, len(levels) - 1)].log_snr for first, _ in timeline[1:]]

    def there(x: Tensor, level: Level) -> Estimate:
        return with_range(parts[timeline[bisect_right(starts, level.log_snr)][1]])(x, level)

    return ranged(there, learned=isinstance(parts[0], Ranged))


def join_rows(parts: Sequence[tuple[tuple[int, ...], Denoise]], device: torch.device) -> Denoise:
    """Return the denoiser of all images from those of the groups, each given with its rows."""
    if len(parts) == 1 and parts[0][0] == tuple(range(len(parts[0][0]))):
        return parts[0][1]
    places = [(torch.tensor(rows, device=device), part) for rows, part in parts]

    learned = isinstance(parts[0][1], Ranged)

    def joined(x: Tensor, level: Level) -> Estimate:
        x0, ranges = torch.empty_like(x), torch.empty_like(x)
        for rows, part in places:
            x0[rows], v = parted(with_range(part)(x[rows], level))
            if v is not None:
                ranges[rows] = v
        return (x0, ranges) if learned else x0

    return ranged(joined, learned=learned)
