"""The audit of the first updates: declared weights are trained, and no others.

Silent versions of these faults have each cost people months: a text encoder that never trained, an average that never
moved, a discriminator that was never updated, all processes drawing the same noise.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latent_diffusion.errors import LatentDiffusionError
from latent_diffusion.training.fsdp import whole
from latent_diffusion.training.networks.weights_digest import weights_digest
from latent_diffusion.training.optimizer import learning_rate, optimizer_settings

if TYPE_CHECKING:
    from latent_diffusion.training.trainer import Trainer

__all__ = ["Audit", "AuditError"]

_UPDATES = 5
"""Updates a player is watched for: layers behind a zero-initialised one get their first gradient in the second."""

EPS = 1e-8
"""Largest gradient that optimizers of Adam's kind may not follow: the eps below their roots."""


class AuditError(LatentDiffusionError):
    """The objective does not train the weights that it declares; a bug in this package, exit code 70."""


class Audit:
    """Watches each player's first updates in this process, then lets go of everything it kept."""

    def __init__(self, trainer: "Trainer"):
        self._trainer = trainer
        self._frozen = {name: weights_digest(module) for name, module in trainer.objective.frozen.items()}
        self._seen = dict.fromkeys(trainer.trainable, 0)
        self._before: dict[str, dict[str, Tensor]] = {}
        self._largest: dict[str, dict[str, Tensor]] = {}
        self._random = torch.get_rng_state()
        self._average: dict[str, Tensor] | None = None

    def after_backward(self, player: str, step: int) -> None:
        """Note the largest gradient of each weight; keep the weights as they were.

        Raises:
            AuditError: the forward pass drew from a global generator.
        """
        if self._seen[player] >= _UPDATES:
            return
        if not torch.equal(torch.get_rng_state(), self._random):
            raise AuditError(
                f"audit: player {player!r} draws from torch's global generator, so a resumed run would differ"
            )
        weights = self._trainer.trainable[player]
        if player not in self._before:
            self._before[player] = {name: p.detach().clone() for name, p in weights.items()}
            self._largest[player] = {}
        if self._trainer.ema is not None and self._average is None:
            self._average = {name: t.clone() for name, t in self._trainer.ema.tensors().items()}
        largest = self._largest[player]
        for name, norm in self._trainer.updates[player].largest().items():
            largest[name] = torch.maximum(largest[name], norm) if name in largest else norm
        self._seen[player] += 1

    def after_update(self, trainer: "Trainer", figures: Mapping[str, float]) -> None:
        """Judge each player after its fifth update, once.

        Raises:
            AuditError: naming the weights.
        """
        for player in [name for name in self._before if self._seen[name] >= _UPDATES]:
            largest = {name: float(norm) for name, norm in self._largest.pop(player).items()}
            self._judge(player, self._before.pop(player), largest)
        self._random = torch.get_rng_state()  # the audit is the last to watch an update

    def _judge(self, player: str, before: dict[str, Tensor], largest: dict[str, float]) -> None:
        trainer = self._trainer
        weights = trainer.trainable[player]
        idle = [name for name in weights if not largest.get(name)]
        _refuse(idle, f"player {player!r}: trainable, but without any gradient in {_UPDATES} updates")
        rate = learning_rate(trainer.done - 1, trainer.run)
        peak, rates = optimizer_settings(trainer.run).learning_rate, trainer.players[player].learning_rates()
        own = {name: rate * rates.get(name, peak) / peak for name in weights}
        # AdamW moves a weight by about the learning rate, unless its gradient is no larger than eps
        pushed = [name for name in weights if largest[name] > 10 * EPS]
        still = [n for n in pushed if _equal(weights[n], before[n]) and own[n] > _smallest_visible(weights[n])]
        _refuse(still, f"player {player!r}: trainable, but did not move in {_UPDATES} updates")
        changed = [n for n, module in trainer.objective.frozen.items() if weights_digest(module) != self._frozen[n]]
        _refuse(changed, "frozen, but changed")
        if trainer.ema is not None and self._average is not None:
            now = trainer.ema.tensors()
            stuck = [n for n, t in now.items() if _equal(t, self._average[n]) and rate > 1e3 * _smallest_visible(t)]
            _refuse(stuck if len(stuck) == len(now) else [], "the moving average did not move")
            self._average = None
        _refuse(self._unequal_over_processes(player), "the processes hold different weights")

    def _unequal_over_processes(self, player: str) -> list[str]:
        if self._trainer.accelerator.num_processes == 1:
            return []
        weights = self._trainer.trainable[player]
        sums = torch.stack([whole(p.detach().double().sum()) for p in weights.values()])
        highest, lowest = sums.clone(), sums.clone()
        torch.distributed.all_reduce(highest, op=torch.distributed.ReduceOp.MAX)
        torch.distributed.all_reduce(lowest, op=torch.distributed.ReduceOp.MIN)
        return [name for name, differs in zip(weights, (highest != lowest).tolist()) if differs]


def _smallest_visible(tensor: Tensor) -> float:
    """Return a learning rate below which rounding may hide an update of the largest element."""
    return 4 * torch.finfo(tensor.dtype).eps * float(whole(tensor.detach().abs().max()))


def _equal(one: Tensor, other: Tensor) -> bool:
    return not bool(whole((one != other).any()))


def _refuse(names: list[str], fault: str) -> None:
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise AuditError(f"audit: {fault}: {', '.join(names[:5])}{more}")
