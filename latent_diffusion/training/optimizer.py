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
from torch import Tensor

from latent_diffusion.config import RunConfig, Section, parse_section
from latent_diffusion.errors import ConfigError
from latent_diffusion.registry import find
from latent_diffusion.training.fsdp import whole

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


class Joined:
    """Several optimizers as one: each weight belongs to one of them."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Take them in order."""
        self.optimizers = tuple(optimizers)
        self.param_groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self._owners = {id(p): one for one in optimizers for group in one.param_groups for p in group["params"]}
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

    def step(self) -> None:
        """Update all weights."""
        for optimizer in self.optimizers:
            optimizer.step()

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


def build_optimizer(player: "Player", settings: OptimizerSettings) -> Joined:
    """Return the optimizer of a player's trainable parameters; those of fewer than two dimensions are not decayed."""
    named = {name: p for name, p in player.named_parameters() if p.requires_grad}
    rates = player.learning_rates()
    others = [name for name in named if rates.get(name, settings.learning_rate) != settings.learning_rate]
    if settings.one_rate and others:
        raise ConfigError(
            f"learning_rate {rates[others[0]]:g} of {others[0]}: {settings.one_rate}; leave the learning rates of "
            f"rules and words out, or use another optimizer"
        )
    groups: Groups = []
    for rate in dict.fromkeys(rates.get(name, settings.learning_rate) for name in named):
        of_rate = [p for name, p in named.items() if rates.get(name, settings.learning_rate) == rate]
        decayed, plain = [p for p in of_rate if p.ndim >= 2], [p for p in of_rate if p.ndim < 2]
        share = rate / settings.learning_rate
        groups += [{"params": decayed, "weight_decay": settings.weight_decay, "share": share}] if decayed else []
        groups += [{"params": plain, "weight_decay": 0.0, "share": share}] if plain else []
    made = settings.build(groups)
    return made if isinstance(made, Joined) else Joined([made])


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
