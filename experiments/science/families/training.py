"""One training for all families: Adam, a moving average of the weights, and a budget of processor time.

Every draw is keyed with the number of samples before it, and a checkpoint holds all that the next update needs, so a
resumed run has the weights of an uninterrupted one, bit for bit, after as many updates. How many updates fit into the
minutes depends on the machine. Processor time is counted, not the clock's, so a busy machine is no disadvantage.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from experiments.science.families.family import Draws, Family, spread_values
from latent_diffusion.checkpoint.files.safetensors_file import read_tensors, write_tensors
from latent_diffusion.randomness import generator, permutation
from latent_diffusion.runtime.precision import autocast

__all__ = ["BATCH", "Progress", "Training"]

BATCH = 16
BETWEEN = 15.0  # seconds of processor time from one checkpoint to the next
WARM_UP = 20  # updates in which the learning rate rises
AVERAGE = 0.995  # decay of the moving average of the weights, at its slowest


@dataclass
class Progress:
    """What a training was like: for each update the processor time so far, and by player loss and gradient's length."""

    seconds: list[float] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)
    gradients: dict[str, list[float]] = field(default_factory=dict)


class Training:
    """A family, its optimizers and its moving average, at some update."""

    def __init__(
        self,
        make: Callable[[], Family],
        values: Tensor,
        seed: int = 0,
        batch: int = BATCH,
        read: Callable[[Tensor, Draws], Tensor] = spread_values,
        precision: str = "float32",
    ) -> None:
        """Begin at update 0, with initial weights that depend on the seed.

        Args:
            make: builds the family.
            values: training pictures (N, ...), by default (N, 3, 32, 32), uint8 0..31.
            seed: of weights and draws.
            batch: pictures an update.
            read: (some of the values, draws) -> what the family reads.
            precision: in which losses are computed; the weights are float32.
        """
        with torch.random.fork_rng():
            torch.manual_seed(int(generator(seed, "weights", 0).integers(2**32)))
            self.family = make()
        self.average = {name: weight.detach().clone() for name, weight in self.family.named_parameters()}
        self.optimizers = {
            player: torch.optim.Adam(weights, self.family.rate(player), self.family.betas)
            for player, weights in self.family.players().items()
        }
        self.values, self.seed, self.batch, self.read = values, seed, batch, read
        self.precision = precision
        self.updates, self.spent, self.progress = 0, 0.0, Progress()

    def update(self) -> None:
        """Take one update of every player."""
        began = time.process_time()
        x, draws = self._next()
        for player, optimizer in self.optimizers.items():
            weights = self.family.players()[player]
            with autocast(self.precision, x.device):
                loss = self.family.loss(player, x, draws)
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            length = torch.nn.utils.clip_grad_norm_(weights, self._longest(player))
            for group in optimizer.param_groups:
                group["lr"] = self.family.rate(player) * min(1.0, (self.updates + 1) / WARM_UP)
            optimizer.step()
            optimizer.zero_grad()
            self.progress.losses.setdefault(player, []).append(loss.item())
            self.progress.gradients.setdefault(player, []).append(length.item())
        decay = min(AVERAGE, (self.updates + 1) / (self.updates + 10))
        with torch.no_grad():
            for name, weight in self.family.named_parameters():
                self.average[name].lerp_(weight, 1 - decay)
        self.updates += 1
        self.spent += time.process_time() - began
        self.progress.seconds.append(self.spent)

    def _next(self) -> tuple[Tensor, Draws]:
        """Return the pictures of the next update and its draws; each epoch has an order of its own."""
        first, count = self.updates * self.batch, len(self.values)
        places = range(first, first + self.batch)
        orders = {epoch: permutation(self.seed, "order", epoch, count) for epoch in {k // count for k in places}}
        rows = [int(orders[k // count][k % count]) for k in places]
        draws = Draws(self.seed, self.updates, first)
        return self.read(self.values[rows], draws), draws

    def _longest(self, player: str) -> float:
        """Return the longest gradient that is not shortened: three times the usual length of the last updates."""
        lengths = self.progress.gradients.get(player, [])[-50:]
        return 3 * sorted(lengths)[len(lengths) // 2] if len(lengths) >= 10 else float("inf")

    def go_on(self, folder: Path, minutes: float, marks: Sequence[float] = ()) -> Iterator[None]:
        """Train from the checkpoint in `folder`, if there is one, until `minutes` are spent; yield after each saving.

        The average of the weights after so many of `marks` minutes is kept as average-MINUTES.safetensors.
        """
        checkpoint = folder / "checkpoint.safetensors"
        if checkpoint.exists():
            self.load(checkpoint)
        saved = self.spent
        while self.spent < 60 * minutes:
            before = self.spent
            self.update()
            passed = [mark for mark in (*marks, minutes) if before < 60 * mark <= self.spent]
            for mark in passed:
                folder.mkdir(parents=True, exist_ok=True)
                write_tensors(folder / f"average-{mark:g}.safetensors", self.average)
            if passed or self.spent - saved > BETWEEN:
                self.save(checkpoint)
                saved = self.spent
                yield

    def save(self, path: Path) -> None:
        """Write a checkpoint; the file is the old or the whole new one at every moment."""
        tensors = {f"average.{name}": value for name, value in self.average.items()}
        tensors |= {f"weights.{name}": value for name, value in self.family.state_dict().items()}
        for player, optimizer in self.optimizers.items():
            for number, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{player}.{number}.{name}": value for name, value in state.items()}
        facts = {"updates": self.updates, "spent": self.spent, **self._kind()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors, {"facts": json.dumps(facts), "progress": json.dumps(vars(self.progress))})

    def _kind(self) -> dict[str, int | str]:
        return {"seed": self.seed, "batch": self.batch, "precision": self.precision}

    def load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: it is of another seed, batch or precision.
        """
        tensors = read_tensors(path)
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        facts = json.loads(metadata["facts"])
        if any(facts.get(name) != value for name, value in self._kind().items()):
            has = {name: facts.get(name) for name in self._kind()}
            raise ValueError(f"{path}: has {has}, and this training {self._kind()}; remove it or use the same")
        self.updates, self.spent = facts["updates"], facts["spent"]
        self.progress = Progress(**json.loads(metadata["progress"]))
        self.average = {name: tensors[f"average.{name}"] for name in self.average}
        self.family.load_state_dict({name: tensors[f"weights.{name}"] for name in self.family.state_dict()})
        for player, optimizer in self.optimizers.items():
            states: dict[int, dict[str, Tensor]] = {}
            start = f"optimizer.{player}."
            for name, value in tensors.items():
                if name.startswith(start):
                    number, what = name.removeprefix(start).split(".")
                    states.setdefault(int(number), {})[what] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
