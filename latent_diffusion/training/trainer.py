"""The training loop, for every objective, on one process or many.

    for each player:  losses of every micro-batch -> backward -> check -> clip -> AdamW
    then the moving average, the log, and now and then a checkpoint and sample pictures

The gradient is that of (1/G) sum of the losses of the G pictures of the global batch. DistributedDataParallel averages
over W processes, so each process scales its sum by W / G. The check comes before clipping and updating: one NaN would
make every gradient NaN through the norm, and AdamW would keep it for ever.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from latent_diffusion.config import MemoryConfig, RunConfig
from latent_diffusion.errors import DivergedError
from latent_diffusion.runtime.cpu.training_kernels import PLAIN, TrainingKernels, install
from latent_diffusion.runtime.precision import autocast, weight_dtype
from latent_diffusion.training.clock import Clock
from latent_diffusion.training.ema import MovingAverage
from latent_diffusion.training.fsdp import check_sharding, distributed
from latent_diffusion.training.numbers import sample_numbers
from latent_diffusion.training.objective import Batch, Objective
from latent_diffusion.training.optimizer import build_optimizer, learning_rate, optimizer_settings
from latent_diffusion.training.updates.rounding import check_bfloat16_weights
from latent_diffusion.training.updates.updates import Updates, UpdatesInBackward, check_update_in_backward

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Observer", "Trainer"]


class Observer(Protocol):
    """Something that watches the updates of one process: the log, the checkpoints, the audit."""

    def after_backward(self, player: str, step: int) -> None:
        """See the gradients of a player before they are clipped and used."""
        ...

    def after_update(self, trainer: "Trainer", figures: dict[str, float]) -> None:
        """See the finished update `trainer.done - 1` and its figures."""
        ...


class Trainer:
    """An objective's weights, their optimizers and averages, and the loop over updates.

    Attributes:
        done: finished updates.
        last: updates after which the run ends; an observer may lower it.
        clock: where the time of the updates goes.
        stopped: True when the loop ended because some process was asked to stop.
    """

    def __init__(
        self,
        objective: Objective,
        run: RunConfig,
        accelerator: "Accelerator",
        kernels: TrainingKernels = PLAIN,
    ):
        self.objective, self.run, self.accelerator = objective, run, accelerator
        memory = run.memory or MemoryConfig()
        if memory.weights == "bfloat16":
            check_bfloat16_weights(run)
        if memory.update_in_backward:
            check_update_in_backward(run, accelerator.num_processes)
        objective.prepare(accelerator, weight_dtype(run.precision))
        self.players = objective.players
        check_sharding(objective, run, accelerator.num_processes)
        for player in self.players.values():
            for module in player.computing():
                install(module, kernels)
        self._wrapped = {name: distributed(accelerator, player) for name, player in self.players.items()}
        self.trainable = {
            name: {n: p for n, p in player.named_parameters() if p.requires_grad}
            for name, player in self.players.items()
        }
        settings = optimizer_settings(run)
        alone = memory.update_in_backward
        self.optimizers = {
            name: build_optimizer(player, settings, run.seed, alone=alone) for name, player in self.players.items()
        }
        kind = UpdatesInBackward if memory.update_in_backward else Updates
        self.updates = {
            name: kind(optimizer, self.trainable[name], run.clip_norm) for name, optimizer in self.optimizers.items()
        }
        self.ema = MovingAverage(objective.ema_modules, run.ema) if run.ema else None
        objective.follow(self.ema)
        self.clock = Clock()
        self.done, self.last = 0, run.updates
        self.stopped = False

    def fit(self, observers: Sequence[Observer] = (), stop: "StopFlag | None" = None) -> None:
        """Train from update `done` to the last, or until a process is asked to stop.

        Raises:
            DivergedError: a loss or gradient is not finite; nothing was updated with it, unless the updates are made in
                the backward pass.
        """
        numbers = sample_numbers(
            self.run, start=self.done, rank=self.accelerator.process_index, processes=self.accelerator.num_processes
        )
        batches = self.objective.batches(numbers)
        while self.done < self.last and not self.stopped:
            with self.clock.timed("data"):
                micro_batches = [next(batches).to(self.accelerator.device) for _ in range(self.run.accumulation)]
            self._freeze_ended()
            figures = self._update(self.done, micro_batches, observers, asked=stop is not None and stop.asked)
            self.done += 1
            for observer in observers:
                observer.after_update(self, figures)

    def _freeze_ended(self) -> None:
        """Take weights out of training whose share of the updates is over; wrap the player anew without them."""
        for name, player in self.players.items():
            over = [n for n, share in player.ends().items() if self.done >= share * self.run.updates]
            ended = [p for n, p in self.trainable[name].items() if n in over and p.requires_grad]
            if ended:
                for parameter in ended:
                    parameter.requires_grad_(False)
                self.accelerator.free_memory()  # of the earlier wrapper, which waits for gradients of all weights
                self._wrapped[name] = self.accelerator.prepare_model(player)

    def _update(
        self, step: int, micro_batches: list[Batch], observers: Sequence[Observer], *, asked: bool
    ) -> dict[str, float]:
        """Make one update of every player and of the averages; return the figures of the global batch."""
        rate = learning_rate(step, self.run)
        figures: dict[str, float] = {}
        for name, player in self.players.items():
            if not player.active(step):
                continue
            updates = self.updates[name]
            updates.begin(rate, step)
            with self.clock.timed("gradients"):
                with self._only(name):
                    parts, of_pictures = self._backward(name, micro_batches, step)
                for observer in observers:
                    observer.after_backward(name, step)
                parts["gradient_norm"] = updates.norm().double() / self.accelerator.num_processes
                parts["asked"] = torch.tensor(float(asked), dtype=torch.float64)
                seen = self._sum_over_processes(parts)
            self._to_mean(seen, of_pictures)
            self.stopped |= seen.pop("asked") > 0
            loss, norm = seen["loss"], seen["gradient_norm"]
            if not (abs(loss) < float("inf") and norm < float("inf")):  # NaN compares false
                raise DivergedError(self._describe(name, step, loss, norm, rate, micro_batches))
            with self.clock.timed("update"):
                updates.finish(norm)
            figures |= {f"{name}/{key}": value for key, value in seen.items()}
        with self.clock.timed("update"):
            if self.ema is not None:
                self.ema.update(step)
        return figures

    def _backward(self, name: str, micro_batches: list[Batch], step: int) -> tuple[dict[str, Tensor], set[str]]:
        """Add up the gradients of all micro-batches.

        Every picture weighs 1 / G, also where the last batch of a bucket has fewer.

        Returns:
            this process's part of each figure's global mean, and which figures are means over pictures.
        """
        wrapped = self._wrapped[name]
        processes, pictures = self.accelerator.num_processes, self.run.batch_size
        parts = {"pictures": torch.zeros((), dtype=torch.float64)}
        of_pictures = {"loss"}
        for index, batch in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(wrapped):
                with autocast(self.run.precision, self.accelerator.device):
                    losses = wrapped(batch, step)
                (losses.total.sum() * (processes / pictures)).backward()
            parts["pictures"] += len(losses.total) if losses.present else 0
            of_pictures |= {key for key, value in losses.logs.items() if value.ndim}
            for key, value in {**losses.logs, "loss": losses.total}.items():
                value = value.detach().double()
                share = value.sum() / pictures if value.ndim else value / (processes * len(micro_batches))
                parts[key] = parts[key] + share if key in parts else share
        return parts, of_pictures

    def _to_mean(self, seen: dict[str, float], of_pictures: set[str]) -> None:
        """Make sums over pictures, each divided by the global batch, means over the pictures there were."""
        factor = self.run.batch_size / max(seen.pop("pictures"), 1.0)
        if factor != 1:
            seen.update({key: seen[key] * factor for key in of_pictures})

    @contextlib.contextmanager
    def _only(self, name: str) -> Iterator[None]:
        """Let gradients stop at the weights of the other players: they pass through, none are stored."""
        others = [
            p for other, held in self.trainable.items() if other != name for p in held.values() if p.requires_grad
        ]
        for parameter in others:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in others:
                parameter.requires_grad_(True)

    def _sum_over_processes(self, parts: dict[str, Tensor]) -> dict[str, float]:
        """Return the figures summed over processes, on the host: the one wait for the device in an update."""
        device = self.accelerator.device
        stacked = torch.stack([value.to(device) for value in parts.values()])
        if self.accelerator.num_processes > 1:
            torch.distributed.all_reduce(stacked)
        return dict(zip(parts, stacked.tolist()))

    def _describe(self, name: str, step: int, loss: float, norm: float, rate: float, micro_batches: list[Batch]) -> str:
        samples = [number for batch in micro_batches for number in batch.sample]
        return (
            f"diverged in update {step + 1}: {name} loss {loss}, gradient norm {norm}, learning rate {rate:g}, "
            f"samples {samples[0]} .. {samples[-1]} of the run; no checkpoint was changed by it; lower "
            f"optimizer.learning_rate or set clip_norm, then run again to continue from the last one"
        )


class StopFlag(Protocol):
    """Something that may ask the loop to stop after the update it is in."""

    @property
    def asked(self) -> bool:
        """True once a stop is wanted."""
        ...
