"""The network's condition: everything it reads besides the noisy latent and its noise level."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

__all__ = ["Blend", "Conditioning"]


@dataclass(frozen=True)
class Conditioning:
    """A batch of conditions; every field has the same first dimension B.

    Shapes: `context` (B, L, D) text states for cross-attention; `pooled` (B, P) one vector a prompt (SDXL);
    `size_ids` (B, 6) in px: original height and width, crop top and left, target height and width (SDXL), or (B, 5)
    with an aesthetic score in place of the target (its refiner); they stay float32, bfloat16 has no 1023;
    `concat` (B, C', h, w) extra input channels (inpainting: mask and masked latents).
    """

    context: Tensor
    pooled: Tensor | None = None
    size_ids: Tensor | None = None
    concat: Tensor | None = None

    def __len__(self) -> int:
        """Number of conditions B."""
        return self.context.shape[0]

    def map(self, change: Callable[[Tensor], Tensor]) -> "Conditioning":
        """Return the same conditions with every field that is set changed."""
        rest = {name: None if v is None else change(v) for name, v in vars(self).items() if name != "context"}
        return Conditioning(change(self.context), **rest)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Conditioning":
        """Return the same conditions on `device` in `dtype`."""
        moved = self.map(lambda v: v.to(device=device, dtype=dtype))
        if self.size_ids is None:
            return moved
        return replace(moved, size_ids=self.size_ids.to(device=device))

    def repeat_interleave(self, count: int) -> "Conditioning":
        """Return each condition `count` times in a row: (B, ...) -> (B * count, ...)."""
        return self.map(lambda v: v.repeat_interleave(count, dim=0))

    def __getitem__(self, rows: slice) -> "Conditioning":
        """Return a slice of the batch."""
        return self.map(lambda v: v[rows])

    @staticmethod
    def cat(parts: Sequence["Conditioning"]) -> "Conditioning":
        """Join batches along B; a field must be set in all parts or in none."""

        def join(name: str) -> Tensor | None:
            present = [v for part in parts if (v := getattr(part, name)) is not None]
            if present and len(present) != len(parts):
                raise ValueError(f"cannot join conditionings: `{name}` is set in {len(present)} of {len(parts)} parts")
            return torch.cat(present) if present else None

        rest = {f.name: join(f.name) for f in fields(Conditioning) if f.name != "context"}
        return Conditioning(torch.cat([part.context for part in parts]), **rest)


@dataclass(frozen=True)
class Blend:
    """Several prompts that all hold at once (AND), each with a weight; where guidance takes a prompt, it takes a blend.

        x0(blend) = x0(negative) + sum_i weight_i * (x0(prompt_i) - x0(negative))

    A weight below zero moves away from its prompt. Each term is a batch of the same B conditions; terms may have
    contexts of different lengths. Reference: Liu et al. 2022, arXiv:2206.01714, algorithm 1.
    """

    terms: tuple[tuple[Conditioning, float], ...]

    def __post_init__(self) -> None:
        assert self.terms, "a blend has at least one term"
        assert len({len(cond) for cond, _ in self.terms}) == 1, "all terms of a blend have the same number of rows"

    def __len__(self) -> int:
        """Number of conditions B."""
        return len(self.terms[0][0])

    def __getitem__(self, rows: slice) -> "Blend":
        """Return a slice of the batch."""
        return self.map(lambda cond: cond[rows])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Blend":
        """Return the same conditions on `device` in `dtype`."""
        return self.map(lambda cond: cond.to(device, dtype))

    def repeat_interleave(self, count: int) -> "Blend":
        """Return each condition `count` times in a row: (B, ...) -> (B * count, ...)."""
        return self.map(lambda cond: cond.repeat_interleave(count))

    def map(self, change: Callable[[Conditioning], Conditioning]) -> "Blend":
        """Return the blend with every term's condition changed, weights as they are."""
        return Blend(tuple((change(cond), weight) for cond, weight in self.terms))

    @property
    def rest(self) -> float:
        """Weight left to the negative prompt: 1 - sum of the weights; where it is 0 no negative is needed."""
        return 1.0 - math.fsum(weight for _, weight in self.terms)
