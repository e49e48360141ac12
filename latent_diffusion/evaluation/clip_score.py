"""How well pictures fit their prompts in the eyes of a CLIP model.

100 x the cosine of image and text feature, below 0 cut off, averaged. Reference: Hessel et al. 2021, "CLIPScore",
arXiv:2104.08718, equation (1), with w = 100. Figures of different CLIP models cannot be compared; what real pictures
score with the same model is the scale.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ImageTextModel", "clip_score"]


class ImageTextModel(Protocol):
    """Interface of a CLIP model for CLIP scores."""

    def image_features(self, images: Tensor) -> Tensor:
        """Return (B, D) of images (B, 3, H, W) in [-1, 1]."""
        ...

    def text_features(self, texts: list[str]) -> Tensor:
        """Return (B, D) of B texts."""
        ...


@torch.no_grad()
def clip_score(model: ImageTextModel, images: Tensor, texts: Sequence[str], batch_size: int = 64) -> float:
    """Return the mean CLIP score of images (N, 3, H, W) in [-1, 1] with their N texts, 0..100."""
    scores = []
    for start in range(0, len(texts), batch_size):
        batch = slice(start, start + batch_size)
        image = F.normalize(model.image_features(images[batch]).float(), dim=1)
        text = F.normalize(model.text_features(list(texts[batch])).float(), dim=1)
        scores.append((image * text).sum(dim=1).clamp(min=0).cpu())
    return 100 * float(torch.cat(scores).mean())
