"""How well the autoencoder gives back pictures it was not trained on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latent_diffusion.evaluation.features import Features, extract
from latent_diffusion.evaluation.gallery import Progress, ignore_progress
from latent_diffusion.evaluation.kid import kid
from latent_diffusion.evaluation.pictures import Picture, RealPictures
from latent_diffusion.models.efficientnet_lite import EfficientNetLite0

__all__ = ["Reconstruct", "ReconstructionScore", "psnr", "score_reconstruction"]

Reconstruct = Callable[[Tensor], Tensor]
"""Images (B, 3, H, W) in [-1, 1] -> the same through the latent space."""

RANGE = 2.0
"""Largest minus smallest value of an image in [-1, 1]."""
FLOOR = 1e-10
"""Mean squared error of a perfect copy: 106 dB instead of infinity."""


@dataclass(frozen=True)
class ReconstructionScore:
    """Fidelity of the autoencoder.

    Attributes:
        pictures: how many.
        size: at how many px.
        psnr: peak signal-to-noise ratio, dB, mean over the pictures.
        psnr_pooled: the same of the mean squared error over all pictures, dB: lower, since hard pictures dominate.
        rkid: 1000 x KID of the reconstructions against the originals, both at `size`.
    """

    pictures: int
    size: int
    psnr: float
    psnr_pooled: float
    rkid: float


def psnr(images: Tensor, references: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio (B,) in dB of images (B, 3, H, W) in [-1, 1], taken as 8-bit pictures."""
    images = ((images.float().clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    error = (images - references.float()).square().flatten(1).mean(dim=1).clamp(min=FLOOR)
    return 10 * torch.log10(RANGE**2 / error)


def score_reconstruction(
    network: EfficientNetLite0,
    reconstruct: Reconstruct,
    pictures: RealPictures,
    rows: Sequence[Picture],
    size: int,
    progress: Progress = ignore_progress,
) -> ReconstructionScore:
    """Return how well `reconstruct` gives back `rows` at `size` px; at least two pictures."""
    ratios, before, after = [], [], []
    for images in pictures.batches(rows, size, batch_size=32):
        copies = reconstruct(images).float().clamp(-1, 1).cpu()
        ratios.append(psnr(copies, images))
        before.append(extract(network, images))
        after.append(extract(network, copies))
        progress("reconstructions", sum(map(len, ratios)), len(rows))
    ratio = torch.cat(ratios).double()
    pooled = -10 * torch.log10((10 ** (-ratio / 10)).mean())
    pairs = torch.arange(len(ratio))
    distance = kid(Features.cat(after).head, Features.cat(before).head, pairs, pairs)
    return ReconstructionScore(len(ratio), size, float(ratio.mean()), float(pooled), distance)
