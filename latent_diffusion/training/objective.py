"""The interface between the trainer and an objective, which has one or more players.

An objective is one file in `training/objectives/`; `objective: {name: unet, ...}` in a run's YAML finds it. The first
name of the file's `__all__` is its class:

    class UNetObjective(Objective):
        settings_type = UNetSettings        # pydantic: the keys beside `name` in the `objective:` section
        data_type = DataConfig              # pydantic: the `data:` section

        def __init__(self, settings, data, run): ...

Rules that make a resumed run equal an uninterrupted one, and one process equal many:

- `__init__` may use torch's global generator (the trainer seeds it with `run.seed` before): same weights everywhere.
- after that nothing draws from a global generator: every draw is keyed with `batch.sample` (`randomness.py`),
  the audit of the first steps fails otherwise. No dropout layers, no BatchNorm.
- losses are per picture; the trainer divides their sum by the global batch, over all micro-batches and processes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import torch
from pydantic import BaseModel
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL.Image import Image

    from latent_diffusion.training.copy_test import Copies

__all__ = ["Average", "Batch", "Losses", "Objective", "Player", "Share"]


class Batch(Protocol):
    """One micro-batch of this process; the trainer reads `sample` only (`data/batches/loader.py` has the usual one)."""

    @property
    def sample(self) -> tuple[int, ...]:
        """Global number of each sample drawn in the run, (B,): the key of all its random decisions."""
        ...

    def to(self, device: torch.device) -> Self:
        """Return the batch with its tensors on `device` (dtype unchanged)."""
        ...


class Average(Protocol):
    """The moving average of weights (`training/ema.py`)."""

    def of(self, module: nn.Module) -> dict[str, Tensor]:
        """Return the averages of the parameters that `module` shares with the averaged parts, by its own names."""
        ...


@dataclass(frozen=True)
class Share:
    """Every `processes`-th of some items, from `rank` on: what one process does of work that all share."""

    rank: int = 0
    processes: int = 1

    def of(self, count: int) -> range:
        """Return the numbers of this share of `count` items."""
        return range(self.rank, count, self.processes)


@dataclass(frozen=True)
class Losses:
    """The result of one player for one micro-batch.

    Attributes:
        total: (B,) float32 or float64, one loss per picture, with its graph. Each picture's term of the mean over the
            global batch.
        logs: figures for the log, by name: (B,) is averaged over the global batch, a scalar over micro-batches and
            processes. Tensors on the device, never `.item()`. The same names in every micro-batch of a step.
        present: whether the pictures count; False for the one picture of weight 0 that a process computes where its
            share of a smaller last batch is empty.
    """

    total: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)
    present: bool = True


class Player(nn.Module, ABC):
    """One set of weights trained by one optimizer; wrapped for several processes on its own.

    Only ITS trainable parameters are registered in it. What it reads but does not train (a GAN's opponent, a frozen
    autoencoder, a perceptual network) is held outside registration, for example `self.held = (discriminator,)`.
    Every trainable parameter takes part in every forward (several processes need it). While one player is on the
    move the parameters of the others do not require gradients: gradients pass through them, none are stored.
    """

    @abstractmethod
    def forward(self, batch: Any, step: int) -> Losses:
        """Return the losses of one micro-batch in update number `step` (from 0)."""

    def computing(self) -> "Iterable[nn.Module]":
        """Return the modules whose layers compute the forward pass and may take faster kernels; by default itself."""
        return (self,)

    def learning_rates(self) -> dict[str, float]:
        """Return peak learning rates of single parameters, by name, in place of the optimizer's."""
        return {}

    def ends(self) -> dict[str, float]:
        """Return the share of the updates after which single parameters are frozen, by name; by default none is."""
        return {}

    def active(self, step: int) -> bool:
        """Return whether this player moves in update `step`; a function of the step alone (a GAN's start step)."""
        return True


class Objective(ABC):
    """Everything that is particular to one kind of training."""

    settings_type: ClassVar[type[BaseModel]]  # pydantic model (extra="forbid") of the `objective:` section, less `name`
    data_type: ClassVar[type[BaseModel]]  # pydantic model (extra="forbid") of the `data:` section
    couples_samples: ClassVar[bool] = False  # True: a picture's loss depends on the others (CLIP): accumulation refused

    players: dict[str, Player]  # updated in this order within one step, all with the step's micro-batches
    ema_modules: dict[str, nn.Module]  # parts whose moving average is kept, saved and exported
    frozen: dict[str, nn.Module]  # parts that must not change; may be empty
    held_out: Any = None  # pictures that are measured and not trained on
    best_by: ClassVar[str] = "validation_loss"  # the figure of `evaluate` by which weights are the best
    best_is_lowest: ClassVar[bool] = True
    memory: ClassVar[frozenset[str]] = frozenset()  # keys of `memory:` that it obeys; the others are refused
    shards: ClassVar[bool] = False  # whether its players may be sharded over processes (FSDP2)
    sample: ClassVar[frozenset[str]] = frozenset({"every"})  # keys of `sample:` that it obeys; the others are refused
    run: Any  # the whole `RunConfig`; set again once the number of updates is known

    @abstractmethod
    def __init__(self, settings: Any, data: Any, run: Any) -> None:
        """Build from the parsed sections and the whole `RunConfig` (seed, precision, sample, gradient_checkpointing).

        Modules are float32, on the CPU and in training mode where they train. Cheap checks of the data belong here.
        """

    @abstractmethod
    def prepare(self, accelerator: "Accelerator", dtype: torch.dtype) -> None:
        """Move every module to `accelerator.device` and `dtype` (float32, or float64 in tests); fill caches.

        Called once, on every process, before the players are wrapped and the checkpoint is loaded.
        """

    @abstractmethod
    def batches(self, numbers: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """Yield one batch per list of global sample numbers, in order."""

    @abstractmethod
    def export(self, folder: Path, *, averaged: bool) -> None:
        """Write the trained parts, diffusers layout, into the empty `folder` (first process only).

        With `averaged` the modules hold their moving average while this runs; they are put back afterwards.
        """

    @abstractmethod
    def verify(self, folder: Path) -> None:
        """Open what `export` wrote and compare a forward pass with the trained parts, which are in place.

        Raises:
            CheckpointError: the files do not give what was trained.
        """

    def follow(self, average: "Average | None") -> None:
        """Take the moving average of the weights, or None where none is kept, for losses whose target it makes."""
        return None

    def plan_lines(self) -> list[str]:
        """Return a table of what a pass holds, where there is more to show than a number."""
        return []

    def pass_samples(self) -> int | None:
        """Return the samples of one pass through the data, or None where the data have no end."""
        return None

    def evaluate(self, share: Share) -> dict[str, Tensor]:
        """Return the figures of this process's share of the held-out pictures, (n,) each; their means are logged.

        Averaged weights are in place. Must not disturb training: no global generator, train/eval mode put back.
        """
        return {}

    def draw(self, share: Share) -> "list[Image]":
        """Return this process's share of the sample pictures; as `evaluate`."""
        return []

    def sheets(self, pictures: "list[Image]") -> "list[Image]":
        """Return what is written of all sample pictures, which are in order (first process only)."""
        return pictures

    def copies(self, pictures: "list[Image]") -> "Copies | None":
        """Return the training pictures nearest to the sample pictures, or None where that has no meaning."""
        return None

    def assembled(self) -> AbstractContextManager[None]:
        """Return a context in which every part of the model is there: `evaluate`, `draw`, `export` and `verify`."""
        return nullcontext()

    def fingerprint(self) -> dict[str, str]:
        """Return what else decides the run (digest of the data, of the initial weights), compared on resume."""
        return {}
