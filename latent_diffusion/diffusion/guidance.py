"""How guidances work together: what a step must ask of the networks, and how each guidance changes the answer.

The estimate starts as x0(prompt), what the network says of the prompt alone, and passes through stages:

    x0 = stage_n( ... stage_2( stage_1( x0(prompt) ) ) )

first those that weigh the prompt against the negative prompt (cfg, apg, ...), then those that add a push (pag, ...),
then those that correct the result (rescale, ...). At the end inpainting puts what is known of a picture in its place.
All predictions that the stages of one step need from one network are made in one batched call. A stage that is off at a
level asks for nothing there.

Every guidance is linear or per image in x0, and x is the same for all predictions, so working on x0 is the same as
working on the network's output wherever a paper does the latter; where it is not, the file says so.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, ClassVar, Protocol, TypeAlias, final

import torch
from torch import Tensor

from latent_diffusion.conditioning import Blend, Conditioning
from latent_diffusion.diffusion import variance
from latent_diffusion.diffusion.denoiser import Denoiser
from latent_diffusion.diffusion.known import Keep, keep_estimate
from latent_diffusion.diffusion.level import Denoise, Level
from latent_diffusion.errors import ConfigError

__all__ = [
    "LARGEST_SCALE",
    "Branch",
    "Combined",
    "Estimate",
    "Guidance",
    "GuidanceContext",
    "LogProb",
    "Models",
    "Prompt",
    "Stage",
    "StageOrder",
    "StepState",
    "TextScore",
]

LARGEST_SCALE = 100.0  # of any guidance; far beyond what makes a picture

LogProb: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(x (B, C, h, w) float32, network times (B,) float32) -> log p(y | x), (B,), differentiable in x."""

TextScore: TypeAlias = Callable[[Tensor], LogProb]
"""Text states (B, L, D) of B prompts c -> (x, times) -> log p(c | x), (B,), but for a constant in x."""


class Models(Protocol):
    """Opens what a guidance needs beside the model that is guided, by the name or path in its text."""

    def denoiser(self, model: str) -> Denoiser:
        """Return another model that reads the same prompts and latents."""
        ...

    def log_prob(self, classifier: str, label: str) -> LogProb:
        """Return the log-probability of a class of a classifier of the same noisy latents."""
        ...

    def text_score(self, clip: str) -> TextScore:
        """Return the score of a CLIP of the same noisy latents and text states."""
        ...


Prompt = Conditioning | Blend
"""The condition that guidance moves towards: B conditions, or a blend of several."""


@dataclass(frozen=True, eq=False)
class Branch:
    """One prediction a step may ask for: what `denoiser` makes of `cond` (B rows). Equal only to itself."""

    denoiser: Denoiser
    cond: Conditioning


@dataclass(frozen=True, eq=False)
class Estimate:
    """A weighted sum of predictions; for a plain prompt, one prediction with weight 1."""

    terms: tuple[tuple[Branch, float], ...]

    def of(self, answers: Mapping[Branch, Tensor]) -> Tensor:
        """Return its x0 (B, C, h, w)."""
        (first, weight), *others = self.terms
        total = answers[first] if weight == 1.0 else weight * answers[first]
        for branch, weight in others:
            total = total + weight * answers[branch]
        return total


@dataclass(frozen=True)
class GuidanceContext:
    """Data that all stages of one call share; made once, at `bind`."""

    denoiser: Denoiser
    conditions: tuple[Prompt, Conditioning]  # prompt and negative prompt, of B rows
    prompt: Estimate
    negative: Estimate
    empty: Estimate | None  # the empty prompt, where the caller gave it
    levels: Sequence[Level]  # those the sampler will visit, noisiest first; empty where the caller did not say

    @classmethod
    def of(
        cls,
        denoiser: Denoiser,
        prompt: Prompt,
        negative: Conditioning,
        empty: Conditioning | None,
        levels: Sequence[Level],
    ) -> "GuidanceContext":
        """Give each condition its branch, so that stages asking for the same prediction share it."""
        away = Branch(denoiser, negative)
        nothing = None if empty is None else Estimate(((Branch(denoiser, empty), 1.0),))
        return cls(denoiser, (prompt, negative), _towards(prompt, away), Estimate(((away, 1.0),)), nothing, levels)

    def seen_by(self, denoiser: Denoiser) -> Estimate:
        """Return what another denoiser makes of the prompt."""
        prompt, negative = self.conditions
        return _towards(prompt, Branch(denoiser, negative))


def _towards(prompt: Prompt, away: Branch) -> Estimate:
    """Return x0(negative) + sum_i weight_i (x0_i - x0(negative)), with its terms sorted by prediction."""
    if isinstance(prompt, Conditioning):
        return Estimate(((Branch(away.denoiser, prompt), 1.0),))
    terms = tuple((Branch(away.denoiser, cond), weight) for cond, weight in prompt.terms)
    return Estimate(terms + (((away, prompt.rest),) if prompt.rest else ()))


@dataclass(frozen=True)
class StepState:
    """The inputs of a stage in one step."""

    x: Tensor  # (B, C, h, w) float32, noisy
    level: Level
    plain: Tensor  # x0(prompt), (B, C, h, w)
    guided: Tensor  # the estimate the earlier stages made, (B, C, h, w)
    answers: Mapping[Branch, Tensor]

    def __getitem__(self, estimate: Estimate) -> Tensor:
        """Return the x0 (B, C, h, w) of an estimate that the stage asked for."""
        return estimate.of(self.answers)


class StageOrder(IntEnum):
    """When a stage runs: the order is the meaning, not the caller's choice."""

    WEIGH = 0  # makes the estimate of prompt and negative; one a level
    PUSH = 1  # adds to it
    CORRECT = 2  # brings it back into range


@dataclass(frozen=True)
class Stage:
    """One guidance put to work for one call."""

    order: StageOrder
    apply: Callable[[StepState], Tensor]  # the new estimate (B, C, h, w)
    needs: tuple[Estimate, ...] = ()  # besides x0(prompt)
    active: Callable[[Level], bool] = field(default=lambda level: True)


class Guidance(ABC):
    """A way to make a denoiser follow its prompt; implementations are frozen dataclasses without state.

    `CFG(7.5) + PAG(3.0)` is both at once.
    """

    weighs: ClassVar[bool] = False  # whether it makes the estimate of prompt and negative prompt
    neutral: ClassVar[Mapping[str, Any]]  # arguments with which it does nothing

    @classmethod
    def from_values(cls, values: Mapping[str, Any], models: Models) -> "Guidance":
        """Return it from the values of a text such as "pag:scale=3".

        `models` opens other models by their names or paths; a guidance that needs one has a field for that name.

        Raises:
            ConfigError: a value that cannot be.
        """
        return cls(**values)

    @property
    def needs_negative(self) -> bool:
        """Whether the negative prompt has any part in the picture."""
        return False

    @property
    def needs_empty(self) -> bool:
        """Whether `bind` wants the empty prompt."""
        return False

    @abstractmethod
    def stages(self, context: GuidanceContext) -> tuple[Stage, ...]:
        """Return the stages it adds to a call; none where its parameters make it do nothing."""
        ...

    @final
    def bind(
        self,
        denoiser: Denoiser,
        prompt: Prompt,
        negative: Conditioning,
        *,
        empty: Conditioning | None = None,
        levels: Sequence[Level] = (),
        slicing: bool = False,
        keep: Keep | None = None,
    ) -> Denoise:
        """Fix all conditions (B rows each) and return the guided `denoise(x, level) -> x0`.

        Args:
            denoiser: the network to guide.
            prompt: what to move towards.
            negative: what to move away from.
            empty: the condition of the empty prompt, for the guidances that need it.
            levels: what the sampler will visit; needed by an interval given in steps.
            slicing: call the network with one row after another: the least memory, the most time.
            keep: what puts the known part of a picture into the finished estimate; None = nothing is known.

        Raises:
            ConfigError: something a guidance needs is missing, or two would weigh the prompt at the same level.
        """
        context = GuidanceContext.of(denoiser, prompt, negative, empty, levels)
        stages = sorted(self.stages(context), key=lambda stage: stage.order)
        _check_one_weighs(stages, levels)
        bound: dict[tuple[Branch, ...], variance.Estimates] = {}  # projections are made once a call
        own = context.prompt.terms[0][0]  # whose v is kept, as in diffusers' IFPipeline

        def denoise(x: Tensor, level: Level) -> variance.Estimate:
            running = [stage for stage in stages if stage.active(level)]
            wanted = [estimate for stage in running for estimate in stage.needs] + [context.prompt]
            answers: dict[Branch, Tensor] = {}
            ranges: dict[Branch, Tensor] = {}
            for group in _batches(branch for estimate in wanted for branch, _ in estimate.terms):
                if group not in bound:
                    bound[group] = variance.with_range(_bind(group, slicing=slicing))
                rows, v = variance.parted(bound[group](x if len(group) == 1 else torch.cat([x] * len(group)), level))
                answers.update(zip(group, rows.chunk(len(group)), strict=True))
                if v is not None:
                    ranges.update(zip(group, v.chunk(len(group)), strict=True))
            plain = guided = context.prompt.of(answers)
            for stage in running:
                guided = stage.apply(StepState(x, level, plain, guided, answers))
            made = (guided, ranges[own]) if own in ranges else guided
            return made if keep is None else keep_estimate(keep, made, level)

        return variance.ranged(denoise, learned=own.denoiser.learned_variance)

    @final
    def __add__(self, other: "Guidance") -> "Combined":
        """Return both at once."""
        return Combined((self, other))


@dataclass(frozen=True)
class Combined(Guidance):
    """Several guidances at once; parts of the same `StageOrder` run in the order given."""

    parts: tuple[Guidance, ...]

    @property
    def needs_negative(self) -> bool:
        """Whether any part does."""
        return any(part.needs_negative for part in self.parts)

    @property
    def needs_empty(self) -> bool:
        """Whether any part does."""
        return any(part.needs_empty for part in self.parts)

    def stages(self, context: GuidanceContext) -> tuple[Stage, ...]:
        """Return the stages of all parts."""
        return tuple(stage for part in self.parts for stage in part.stages(context))


def _check_one_weighs(stages: Sequence[Stage], levels: Sequence[Level]) -> None:
    """Refuse two stages that each make the estimate of prompt and negative: the later would undo the earlier."""
    weighing = [stage for stage in stages if stage.order is StageOrder.WEIGH]
    if len(weighing) < 2:
        return
    if not levels or any(sum(stage.active(level) for stage in weighing) > 1 for level in levels):
        raise ConfigError(
            f"{len(weighing)} guidances weigh prompt against negative (cfg, apg, cfg_zero, perp_neg) at one level; "
            "use one, or give each its own interval of steps"
        )


def _batches(branches: Iterable[Branch]) -> list[tuple[Branch, ...]]:
    """Return the branches in groups of one network and one shape, each of which is a single batched call."""
    groups: dict[tuple, list[Branch]] = {}
    for branch in dict.fromkeys(branches):
        groups.setdefault((id(branch.denoiser), *_shapes(branch.cond)), []).append(branch)
    return [tuple(group) for group in groups.values()]


def _bind(group: tuple[Branch, ...], *, slicing: bool) -> Denoise:
    """Return the denoiser of the group's conditions in one batch, or with `slicing` one row after another."""
    denoiser, conds = group[0].denoiser, [branch.cond for branch in group]
    cond = conds[0] if len(conds) == 1 else Conditioning.cat(conds)
    return _row_by_row(denoiser, cond) if slicing else denoiser.bind(cond)


def _row_by_row(denoiser: Denoiser, cond: Conditioning) -> Denoise:
    rows = [variance.with_range(denoiser.bind(cond[k : k + 1])) for k in range(len(cond))]

    def denoise(x: Tensor, level: Level) -> variance.Estimate:
        parts = [variance.parted(row(x[k : k + 1], level)) for k, row in enumerate(rows)]
        x0, vs = torch.cat([part for part, _ in parts]), [v for _, v in parts if v is not None]
        return (x0, torch.cat(vs)) if vs else x0

    return variance.ranged(denoise, learned=denoiser.learned_variance)


def _shapes(cond: Conditioning) -> tuple:
    """Return what must agree for conditions to lie in one batch."""
    return tuple(None if value is None else value.shape[1:] for value in vars(cond).values())
