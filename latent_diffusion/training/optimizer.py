"""Code that all optimizers share, the learning-rate curve, and the norm of gradients.

The curve is a pure function of the update number, so it needs no state and does not depend on the number of
processes.
"""

import importlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from latent_diffusion.config import RunConfig, Section, parse_section
from latent_diffusion.errors import ConfigError
from latent_diffusion.registry import find
from latent_diffusion.training.fsdp import whole
from latent_diffusion.training.updates.rounding import rounded, rounding_generator

if TYPE_CHECKING:
    from latent_diffusion.training.objective import Player

__all__ = [
    "Groups",
    "Joined",
    "OptimizerSettings",
    "build_optimizer",
    "check_betas",
    "described_optimizer",
    "gradient_norm",
    "learning_rate",
    "need_package",
    "optimizer_settings",
    "scale_gradients",
]

OPTIMIZERS = "latent_diffusion.training.optimizers"
Groups = list[dict[str, Any]]
"""Parameter groups: params, weight_decay, and share: the group's learning rate over that of the run."""


def _betas(betas: tuple[float, float]) -> tuple[float, float]:
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas {list(betas)} must lie in [0, 1)")
    return betas


check_betas = Annotated[tuple[float, float], AfterValidator(_betas)]


class OptimizerSettings(Section, ABC):
    """The `optimizer:` section, less `name`; each optimizer adds its own keys."""

    constant_only: ClassVar[bool] = False
    """Whether the optimizer replaces the curve of the learning rate."""
    one_rate: ClassVar[str] = ""
    """Why all weights must have one learning rate; "": they may have several."""
    state_bytes: ClassVar[int] = 8
    """Bytes of the optimizer's state for each trained number; two float32 averages by default."""

    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """Decoupled weight decay of tensors with two dimensions or more; biases and norms have none."""

    @abstractmethod
    def build(self, groups: Groups) -> "torch.optim.Optimizer | Joined":
        """Return the optimizer over `groups`."""


class Rounded:
    """The optimizer of one bfloat16 weight: it computes in float32, and its result is rounded at random.

    The float32 weight lasts for one update; the optimizer's state stays in float32.
    """

    def __init__(
        self, weight: Tensor, name: str, seed: int, settings: OptimizerSettings, group: dict[str, Any]
    ) -> None:
        """Take the weight, its name and the run's seed, which key the random bits, and its group without weights."""
        self.weight, self._name, self._seed = weight, name, seed
        self._wide = nn.Parameter(torch.empty_like(weight, dtype=torch.float32))
        made = settings.build([{**group, "params": [self._wide]}])
        inner: Any = made.optimizers if isinstance(made, Joined) else [made]
        (self._inner,) = inner
        self.param_groups, self.defaults = self._inner.param_groups, self._inner.defaults
        self._wide.data = self._wide.new_empty(0)

    def step(self, update: int) -> None:
        """Update the weight."""
        if self.weight.grad is None:
            return
        self._wide.data, self._wide.grad = self.weight.detach().float(), self.weight.grad.float()
        self._inner.step()
        draw = rounding_generator(self._seed, self._name, update, self.weight.device)
        self.weight.detach().copy_(rounded(self._wide.detach(), draw))
        self._wide.data, self._wide.grad = self._wide.new_empty(0), None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradient."""
        self.weight.grad = None

    @property
    def state(self) -> dict[Tensor, dict[str, Any]]:
        """The state of the weight."""
        return {self.weight: self._inner.state[self._wide]}


class Joined:
    """Several optimizers as one: each weight belongs to one of them."""

    def __init__(self, optimizers: "Sequence[torch.optim.Optimizer | Rounded]") -> None:
        """Take them in order."""
        self.optimizers = tuple(optimizers)
        self.param_groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self._owners = {id(p): one for one in optimizers for p in _weights(one)}
        self._first = [
            {key: value for key, value in group.items() if type(value) in (int, float) and key != "lr"}
            for group in self.param_groups
        ]

    def state_of(self, parameter: Tensor) -> dict[str, Any]:
        """Return the state of a weight, to be read or filled."""
        return self._owners[id(parameter)].state[parameter]

    def fused(self, parameter: Tensor) -> bool:
        """Whether the weight's optimizer updates all its tensors in one kernel."""
        return bool(self._owners[id(parameter)].defaults.get("fused"))

    def step(self, update: int = 0) -> None:
        """Update all weights; `update` (from 0) keys what is drawn."""
        for optimizer in self.optimizers:
            _step(optimizer, update)

    def step_of(self, parameter: Tensor, update: int) -> None:
        """Update a weight that has an optimizer of its own."""
        _step(self._owners[id(parameter)], update)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=set_to_none)

    def mode(self, *, training: bool) -> None:
        """Let weights hold the point of training, or what is for use; for optimizers where these differ."""
        for optimizer in self.optimizers:
            switch = getattr(optimizer, "train" if training else "eval", None)
            if switch is not None:
                switch()

    def counted(self) -> dict[str, Any]:
        """Return the numbers of groups that have changed since the start, by "group0.key": counts and estimates."""
        return {
            f"group{index}.{key}": group[key]
            for index, (group, first) in enumerate(zip(self.param_groups, self._first, strict=True))
            for key, value in first.items()
            if group[key] != value
        }

    def count_on(self, values: Mapping[str, float]) -> None:
        """Put back what `counted` returned."""
        for place, value in values.items():
            group, _, key = place.partition(".")
            index = int(group.removeprefix("group"))
            self.param_groups[index][key] = type(self._first[index][key])(value)


def _weights(optimizer: "torch.optim.Optimizer | Rounded") -> list[Tensor]:
    if isinstance(optimizer, Rounded):
        return [optimizer.weight]
    return [p for group in optimizer.param_groups for p in group["params"]]


def _step(optimizer: "torch.optim.Optimizer | Rounded", update: int) -> None:
    if isinstance(optimizer, Rounded):
        optimizer.step(update)
    else:
        optimizer.step()


def optimizer_settings(run: RunConfig) -> OptimizerSettings:
    """Return the settings of the optimizer that the run names.

    Raises:
        ConfigError: unknown optimizer, a wrong key or value, or a curve that it does not allow.
    """
    settings = _parsed(json.dumps(run.optimizer))
    if settings.constant_only and run.decay != "constant":
        raise ConfigError(f"decay: {run.decay}, but optimizer {run.optimizer['name']!r} has no curve; use constant")
    return settings


@lru_cache
def _parsed(text: str) -> OptimizerSettings:
    """Return the settings of an `optimizer:` section given as JSON; the curve asks for them in every update."""
    values = json.loads(text)
    kind = find(OPTIMIZERS, str(values.pop("name", "adamw")))
    settings = parse_section(kind, values, "optimizer")
    assert isinstance(settings, OptimizerSettings), f"{kind} is a file of {OPTIMIZERS}"
    return settings


def described_optimizer(run: RunConfig) -> dict[str, Any]:
    """Return the name of the run's optimizer and all its settings, defaults included, as JSON."""
    return {"name": run.optimizer.get("name", "adamw"), **optimizer_settings(run).model_dump(mode="json")}


def build_optimizer(player: "Player", settings: OptimizerSettings, seed: int = 0, *, alone: bool = False) -> Joined:
    """Return the optimizer of a player's trainable parameters; those of fewer than two dimensions are not decayed.

    Args:
        player: whose weights it moves.
        settings: of the optimizer.
        seed: of the run, which keys the rounding of bfloat16 weights.
        alone: give every weight an optimizer of its own.
    """
    named = {name: p for name, p in player.named_parameters() if p.requires_grad}
    rates = player.learning_rates()
    others = [name for name in named if rates.get(name, settings.learning_rate) != settings.learning_rate]
    if settings.one_rate and others:
        raise ConfigError(
            f"learning_rate {rates[others[0]]:g} of {others[0]}: {settings.one_rate}; leave the learning rates of "
            f"rules and words out, or use another optimizer"
        )
    own = {name: p for name, p in named.items() if alone or p.dtype == torch.bfloat16}
    made: list[torch.optim.Optimizer | Rounded] = []
    for name, p in own.items():
        (group,) = _groups({name: p}, rates, settings)
        if p.dtype == torch.bfloat16:
            made.append(Rounded(p, name, seed, settings, group))
        else:
            made += _built([group], settings)
    groups = _groups({name: p for name, p in named.items() if name not in own}, rates, settings)
    return Joined([*made, *(_built(groups, settings) if groups else [])])


def _built(groups: Groups, settings: OptimizerSettings) -> "Sequence[torch.optim.Optimizer | Rounded]":
    made = settings.build(groups)
    return made.optimizers if isinstance(made, Joined) else [made]


def _groups(named: Mapping[str, Tensor], rates: Mapping[str, float], settings: OptimizerSettings) -> Groups:
    """Return the groups of weights that share a learning rate and a decay."""
    groups: Groups = []
    for rate in dict.fromkeys(rates.get(name, settings.learning_rate) for name in named):
        of_rate = [p for name, p in named.items() if rates.get(name, settings.learning_rate) == rate]
        decayed, plain = [p for p in of_rate if p.ndim >= 2], [p for p in of_rate if p.ndim < 2]
        share = rate / settings.learning_rate
        groups += [{"params": decayed, "weight_decay": settings.weight_decay, "share": share}] if decayed else []
        groups += [{"params": plain, "weight_decay": 0.0, "share": share}] if plain else []
    return groups


def need_package(name: str, optimizer: str) -> Any:
    """Import an optional package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"optimizer {optimizer!r} needs the package {name}: pip install {name}, or use another optimizer"
        ) from error


def learning_rate(step: int, run: RunConfig) -> float:
    """Return the learning rate of update `step` (from 0): linear warm-up to the peak, then the curve."""
    peak = optimizer_settings(run).learning_rate
    if step < run.warmup:
        return peak * (step + 1) / run.warmup
    if run.decay == "constant":
        return peak
    progress = min(1.0, (step - run.warmup) / max(1, run.updates - run.warmup))
    return peak * CURVES[run.decay](progress)


def cosine(progress: float) -> float:
    """Return half a cosine, 1 .. 0."""
    return 0.5 * (1 + math.cos(math.pi * progress))


RESTARTS = 3
"""Cosine curves of `restarts` (Loshchilov & Hutter 2017, arXiv:1608.03983)."""

CURVES: Mapping[str, Callable[[float], float]] = {
    "linear": lambda progress: 1 - progress,
    "cosine": cosine,
    "polynomial": lambda progress: (1 - progress) ** 2,
    "restarts": lambda progress: cosine(progress * RESTARTS % 1.0) if progress < 1 else 0.0,
}
"""Share of the peak, by the share of the updates after the warm-up."""


def gradient_norm(parameters: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm over all gradients, () on the device; NaN or infinite when any of them is."""
    return whole(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))


def scale_gradients(parameters: Sequence[Tensor], norm: float, limit: float) -> None:
    """Scale the gradients in place so that their norm, now `norm`, is at most `limit`."""
    if norm > limit:
        torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], limit / (norm + 1e-12))
