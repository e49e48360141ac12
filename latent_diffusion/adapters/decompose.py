"""Adapters made from weights: the difference of two models, another rank, several adapters as one.

Each is the best approximation of a matrix by one of lower rank, by its singular values (Eckart & Young 1936):

    D = U S V^T,   up = U_r sqrt(S_r),   down = sqrt(S_r) V_r^T,   error^2 = sum of the squares of the values left out
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latent_diffusion.adapters.lora_file import Adapter
from latent_diffusion.adapters.merge import adapted
from latent_diffusion.adapters.model_parts import parts_of
from latent_diffusion.checkpoint.components import Components
from latent_diffusion.errors import CheckpointError, ConfigError

__all__ = ["Decomposition", "decompose", "extract", "merge"]

Factors = dict[str, dict[str, dict[str, Tensor]]]
"""part -> path of a layer -> factor, as `adapters.writing.write_factors` takes them."""

UNCHANGED = 1e-6
"""A difference of weights below this share of the weight is rounding, and the layer is left out."""


@dataclass(frozen=True)
class Decomposition:
    """Factors of the changes of a model's layers, and what was lost.

    Attributes:
        factors: LoRA factors of each changed layer.
        error: norm of all that was left out, over the norm of the whole change, 0 .. 1.
        ranks: rank of each layer, by "part.path".
        skipped: layers whose change has no factors in an adapter file (norms, biases, embeddings), by "part.path".
    """

    factors: Factors
    error: float
    ranks: Mapping[str, int]
    skipped: tuple[str, ...] = ()


def extract(base: Components, tuned: Components, rank: int, energy: float = 1.0) -> Decomposition:
    """Return the LoRA that makes `tuned` of `base`, as well as its rank allows.

    Args:
        base: the model that the adapter will be used with.
        tuned: a model of the same sizes.
        rank: most rank of a layer, 1 or more.
        energy: share of the sum of squares that is enough, 0 < energy <= 1; layers that need less rank have less.

    Raises:
        CheckpointError: the models have other layers or sizes.
        ConfigError: a rank or energy out of range, or models that do not differ.
    """
    theirs = parts_of(tuned)
    if set(theirs) != set(parts_of(base)):
        raise CheckpointError(
            f"{tuned.name} has the parts {', '.join(theirs)}, {base.name} {', '.join(parts_of(base))}"
        )
    return _of_networks(parts_of(base), theirs, rank, energy, f"{tuned.name} against {base.name}")


def merge(base: Components, adapters: Sequence[tuple[Adapter, float]], rank: int, energy: float = 1.0) -> Decomposition:
    """Return one LoRA with the sum of the changes of `adapters` to `base`; with one adapter it is a change of rank.

    Args:
        base: the model, whose weights the lengths of DoRA refer to.
        adapters: adapters read for `base`, each with its strength.
        rank: most rank of a layer.
        energy: as for `extract`.

    Raises:
        ConfigError: a rank or energy out of range, changes that add up to nothing, or an inpainting adapter.
    """
    for adapter, _ in adapters:
        if adapter.report.inpainting:
            raise ConfigError(
                f"{adapter.name} is an inpainting adapter, whose whole change of the first convolution a LoRA of lower "
                "rank would lose; in Python, fuse_lora and save_pretrained make a model of it"
            )
    changed = {
        part: adapted(network, [(adapter.updates.get(part, {}), strength) for adapter, strength in adapters])
        for part, network in parts_of(base).items()
    }
    return _of_networks(parts_of(base), changed, rank, energy, " + ".join(adapter.name for adapter, _ in adapters))


@torch.no_grad()
def _of_networks(
    before: Mapping[str, nn.Module], after: Mapping[str, nn.Module], rank: int, energy: float, name: str
) -> Decomposition:
    if rank < 1:
        raise ConfigError(f"rank {rank} is out of range; use 1 or more")
    if not 0.0 < energy <= 1.0:
        raise ConfigError(f"energy {energy} is out of range; use a share above 0, at most 1")
    factors: Factors = {}
    ranks: dict[str, int] = {}
    skipped: list[str] = []
    whole = lost = 0.0
    for part, path, weight, change in _changes(before, after):
        if change is None:
            skipped.append(f"{part}.{path}")
            continue
        up, down, missed = decompose(change.flatten(1), rank, energy)
        whole += float(change.double().square().sum())
        lost += missed
        kernel = weight.shape[2:]
        made = len(down)
        ranks[f"{part}.{path}"] = made
        factors.setdefault(part, {})[path] = {
            "up": up.reshape(-1, made, *[1] * len(kernel)).contiguous(),
            "down": down.reshape(made, -1, *kernel).contiguous(),
            "alpha": torch.tensor(float(made)),
        }
    if not factors:
        raise ConfigError(f"{name}: no linear layer or convolution is changed, so there is nothing to write")
    return Decomposition(factors, (lost / whole) ** 0.5, ranks, tuple(skipped))


def _changes(
    before: Mapping[str, nn.Module], after: Mapping[str, nn.Module]
) -> Iterator[tuple[str, str, Tensor, Tensor | None]]:
    """Yield part, path, weight and change of every layer that differs; None as change where LoRA has no factors."""
    for part, network in before.items():
        ours, theirs = dict(network.named_modules()), dict(after[part].named_modules())
        for path, layer in ours.items():
            for name, tensor in layer.named_parameters(recurse=False):
                other = getattr(theirs.get(path), name, None)
                if not isinstance(other, Tensor) or other.shape != tensor.shape:
                    found = "absent" if other is None else tuple(other.shape)
                    raise CheckpointError(f"{part}.{path}.{name} has shape {tuple(tensor.shape)} and {found}")
                if other is tensor:
                    continue
                change = other.float() - tensor.float()
                if float(change.norm()) <= UNCHANGED * float(tensor.float().norm()):
                    continue
                factored = name == "weight" and isinstance(layer, nn.Linear | nn.Conv2d)
                yield part, path if factored else f"{path}.{name}", tensor, change if factored else None


def decompose(matrix: Tensor, rank: int, energy: float = 1.0) -> tuple[Tensor, Tensor, float]:
    """Return `up` (O, r), `down` (r, I), float32, and the sum of squares of what up @ down lacks of `matrix` (O, I).

    r is the smallest rank with the share `energy` of the sum of squares, at most `rank` and the matrix's own.
    """
    u, values, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    squares = values.square()
    shares = squares.cumsum(0) / squares.sum().clamp_min(1e-300)
    enough = int((shares < energy * (1 - 1e-12)).sum()) + 1
    made = max(1, min(rank, enough, int((values > 1e-7 * values[0]).sum())))
    root = values[:made].sqrt()
    up, down = u[:, :made] * root, root[:, None] * v[:made]
    return up.float(), down.float(), float(squares[made:].sum())
