"""Batches from samples, made ahead of time by threads.

Order and draws do not depend on the number of workers, because samples carry keys.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latent_diffusion.data.ahead import ahead
from latent_diffusion.data.batches.folder import ImageFolder, Sample

__all__ = ["Batch", "batches", "collate"]

_AHEAD = 2
"""Batches that are being made while one is trained on."""


@dataclass(frozen=True)
class Batch:
    """Samples of one micro-batch.

    `sample` (B,) global sample numbers, the keys of all further draws; `row` (B,) indices in the data set;
    `images` (B, 3, H, W) float32 in [-1, 1]; `captions` (B,), "" where dropped; `flipped` (B,); `size_ids` (B, 6)
    float32 in px as `Conditioning` has them; `weights` (B,) float32, factors of the losses, or None where all are 1.
    A process whose share of a smaller last batch has no picture gets one picture of that batch with `present` False
    and weight 0: every process computes, and nothing counts twice.
    """

    sample: tuple[int, ...]
    row: tuple[int, ...]
    images: Tensor
    captions: tuple[str, ...]
    flipped: tuple[bool, ...]
    size_ids: Tensor
    weights: Tensor | None = None
    present: bool = True

    def __len__(self) -> int:
        """Number of samples B."""
        return len(self.sample)

    def take(self, places: Sequence[int]) -> "Batch":
        """Return the samples at `places` as a batch."""
        chosen = list(places)
        return replace(
            self,
            sample=tuple(self.sample[k] for k in chosen),
            row=tuple(self.row[k] for k in chosen),
            images=self.images[chosen],
            captions=tuple(self.captions[k] for k in chosen),
            flipped=tuple(self.flipped[k] for k in chosen),
            size_ids=self.size_ids[chosen],
            weights=None if self.weights is None else self.weights[chosen],
        )

    def to(self, device: torch.device | str) -> "Batch":
        """Return the same batch with its tensors on `device`."""
        images, sizes = (tensor.to(device, non_blocking=True) for tensor in (self.images, self.size_ids))
        weights = None if self.weights is None else self.weights.to(device, non_blocking=True)
        return replace(self, images=images, size_ids=sizes, weights=weights)


def collate(samples: Sequence[Sample]) -> Batch:
    """Return samples as one batch; `images` is empty (B, 0) where they carry none."""
    pixels = [sample.image for sample in samples if sample.image is not None]
    images = torch.stack(pixels).float().div_(127.5).sub_(1) if pixels else torch.empty(len(samples), 0)
    weights = torch.tensor([s.weight for s in samples], dtype=torch.float32)
    return Batch(
        sample=tuple(s.number for s in samples),
        row=tuple(s.row for s in samples),
        images=images,
        captions=tuple(s.caption for s in samples),
        flipped=tuple(s.flipped for s in samples),
        size_ids=torch.tensor([s.size_ids for s in samples], dtype=torch.float32),
        weights=None if bool((weights == 1).all()) else weights,
    )


def batches(
    data: ImageFolder, numbers: Iterable[Sequence[int]], workers: int = 1, *, pixels: bool = True
) -> Iterator[Batch]:
    """Yield one batch for every list of global sample numbers, in order.

    Args:
        data: the data set.
        numbers: the sample numbers of each batch; may be endless, is read `_AHEAD` batches ahead.
        workers: threads that make batches; 0 makes each when it is asked for.
        pixels: read the pictures; without it `images` is empty (B, 0).

    Raises:
        DataError: a picture vanished or was damaged since it was scanned.
    """

    def make(chosen: Sequence[int]) -> Batch:
        shown = data.numbers_shown(chosen)
        if shown:
            return collate([data.sample(number, pixels=pixels) for number in shown])
        batch = collate([data.sample(data.order.first_of_batch(chosen[0]), pixels=pixels)])
        return replace(batch, weights=torch.zeros(1), present=False)

    return ahead(make, numbers, workers, max(_AHEAD, workers))
