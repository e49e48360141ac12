"""The named factors of one layer -> its change, checked against the layer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from latent_diffusion.adapters.delta import Decomposed, Delta, Full, Hadamard, Kronecker, LowRank, Product
from latent_diffusion.adapters.multiplied import rotated, scaled
from latent_diffusion.errors import CheckpointError

__all__ = ["Update", "update_of"]

Fields = Mapping[str, Tensor]
Scale = Callable[[int | None], float]
"""Scale of a change by its rank, where the file gives no alpha; None = its factors show no rank."""
Terms = Callable[[], int | None]
"""Terms of OFT's series, by PEFT's settings; None = none, Cayley's transform itself."""


@dataclass(frozen=True)
class Update:
    """The change of one layer."""

    form: str  # for people: "LoRA", "LoHa", "LoKr", "(IA)3", "OFT", "full", with "DoRA " before it
    weight: Delta | None
    bias: Tensor | None


def update_of(fields: Fields, weight: Tensor, bias: Tensor | None, scale: Scale, terms: Terms = lambda: None) -> Update:
    """Return the change that `fields` describe for a layer with this weight and bias.

    Raises:
        CheckpointError: a factor is missing, holds no finite numbers, or does not fit the layer; the message names it.
    """
    for name, tensor in fields.items():
        numbers = tensor.is_floating_point() or name == "alpha"  # which some write as an integer
        if not numbers or not tensor.numel() or not torch.isfinite(tensor.sum(dtype=torch.float64)):
            raise CheckpointError(f"its `{name}` holds no finite floating-point numbers")
    if "ia3" in fields:
        change = scaled(fields["ia3"], weight)
        moved = None if bias is None or change.by_input else (change.factors - 1) * bias.detach()
        return Update("(IA)3", change, moved)
    if "oft" in fields:
        return Update("OFT", rotated(fields["oft"], weight, terms()), None)
    form, delta = _form(fields, scale)
    if delta is not None:
        wanted = weight.shape[0], weight[0].numel()
        if delta.shape != wanted:
            raise CheckpointError(f"its change has shape {delta.shape}, the model's weight {wanted}")
        length = fields.get("magnitude", fields.get("dora_scale"))
        if length is not None:
            form, delta = f"DoRA {form}", _decomposed(delta, length, weight, peft="magnitude" in fields)
    change = fields.get("diff_b")
    if "up_bias" in fields:
        change = _bias_of_up(fields["up_bias"], delta, bias)
    if change is not None and (bias is None or change.numel() != bias.numel()):
        wanted = 0 if bias is None else bias.numel()
        raise CheckpointError(f"its change of the bias has {change.numel()} numbers, the model's bias {wanted}")
    return Update(form, delta, change)


def _bias_of_up(added: Tensor, delta: Delta | None, bias: Tensor | None) -> Tensor:
    """Return the change of the bias by that of the second factor: y = W x + b + s (up down x + c).

    Raises:
        CheckpointError: the layer has no bias to change, where PEFT does not merge it either, or the form is another.
    """
    if not isinstance(delta, LowRank):
        raise CheckpointError("its lora_B.bias (lora_bias) is beside another form than LoRA; not read")
    if bias is None:
        raise CheckpointError(
            "its lora_B.bias (lora_bias) changes a bias, and this layer has none, so it cannot be merged; train the "
            "adapter with lora_bias=False"
        )
    return delta.scale * added.float()


def _form(fields: Fields, scale: Scale) -> tuple[str, Delta | None]:
    """Return name and change of the weight; None where only the bias changes."""
    if "down" in fields or "up" in fields:
        up, down = _need(fields, "up", "down")
        factors = _product(up, down, fields.get("mid"))
        return "LoRA", LowRank(factors, _scale(fields, factors.rank, scale))
    if any(name.startswith("hada_") for name in fields):
        first, second = (_hada(fields, number) for number in "12")
        if first.shape != second.shape:
            raise CheckpointError(f"its two products have shapes {first.shape} and {second.shape}")
        return "LoHa", Hadamard(first, second, _scale(fields, first.rank, scale))
    if any(name.startswith("lokr_") for name in fields):
        first, second = _lokr(fields, "1"), _lokr(fields, "2")
        ranks = [part.rank for part in (second, first) if isinstance(part, Product)]
        return "LoKr", Kronecker(first, second, _scale(fields, ranks[0], scale) if ranks else scale(None))
    if "diff" in fields:
        change = fields["diff"]
        return "full", Full(change.flatten(1) if change.ndim > 1 else change[:, None])
    if "diff_b" in fields:
        return "full", None
    raise CheckpointError(f"it has {', '.join(sorted(fields))} without the other factors")


def _hada(fields: Fields, number: str) -> Product:
    left, right = _need(fields, f"hada_w{number}_a", f"hada_w{number}_b")
    core = fields.get(f"hada_t{number}")
    return _product(left if core is None else left.T, right, core)  # beside a core the left factor is (r, O)


def _lokr(fields: Fields, number: str) -> Product | Tensor:
    whole = fields.get(f"lokr_w{number}")
    if whole is not None:
        return whole.flatten(1)
    left, right = _need(fields, f"lokr_w{number}_a", f"lokr_w{number}_b")
    core = fields.get(f"lokr_t{number}")
    return _product(left if core is None else left.T, right, core)


def _need(fields: Fields, *names: str) -> list[Tensor]:
    missing = [name for name in names if name not in fields]
    if missing:
        raise CheckpointError(f"it has {', '.join(sorted(fields))}, but no {', '.join(missing)}")
    for name in names:
        if fields[name].ndim < 2:
            raise CheckpointError(f"its `{name}` has shape {tuple(fields[name].shape)}; a factor is a matrix")
    return [fields[name] for name in names]


def _product(left: Tensor, right: Tensor, core: Tensor | None) -> Product:
    product = Product(left, right, core)
    if (core is not None and core.ndim != 4) or not product.fits():
        shapes = [tuple(t.shape) for t in (left, right, core) if t is not None]
        raise CheckpointError(f"its factors {', '.join(map(str, shapes))} cannot be multiplied")
    return product


def _scale(fields: Fields, rank: int, scale: Scale) -> float:
    if "alpha" not in fields:
        return scale(rank)
    if fields["alpha"].numel() != 1:
        raise CheckpointError(f"its alpha has {fields['alpha'].numel()} numbers")
    return float(fields["alpha"].item()) / rank


def _decomposed(delta: Delta, length: Tensor, weight: Tensor, *, peft: bool) -> Decomposed:
    """Return DoRA: lengths of rows, or where an early LyCORIS wrote (1, I, 1, 1), of inputs."""
    by_input = not peft and length.shape[0] != weight.shape[0]
    wanted = weight.shape[1 if by_input else 0]
    if length.numel() != wanted:
        raise CheckpointError(f"it has {length.numel()} lengths (DoRA), the model's weight needs {wanted}")
    return Decomposed(delta, length.flatten(), by_input)
