"""Drawings of a model for a list of prompts, and their scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latent_diffusion.checks import MAX_SEED
from latent_diffusion.evaluation.clip_score import ImageTextModel, clip_score
from latent_diffusion.evaluation.features import extract
from latent_diffusion.evaluation.gallery import Gallery, Progress, ignore_progress
from latent_diffusion.evaluation.kid import kid
from latent_diffusion.evaluation.pictures import Picture
from latent_diffusion.models.efficientnet_lite import EfficientNetLite0

__all__ = ["DrawingScore", "Drawings", "Generate", "draw", "score_drawings"]

Generate = Callable[[list[str], list[int]], Tensor]
"""(prompts, one seed each) -> images (B, 3, H, W) in [-1, 1]."""


@dataclass(frozen=True)
class Drawings:
    """The pictures drawn for `asked`: `images` (prompts x per_prompt, 3, H, W) in [-1, 1], a prompt's in a row."""

    asked: tuple[Picture, ...]
    images: Tensor
    per_prompt: int


@dataclass(frozen=True)
class DrawingScore:
    """How pictures drawn for a set of prompts compare with the real ones.

    Attributes:
        prompts: how many.
        pictures: how many in all.
        scores: name1, name5, style, joint1, each 0..1; empty for data without styles and concept families.
        kid: 1000 x KID against the real pictures of the same prompts, at the model's size; None for fewer than two.
        clip: CLIP score of the drawn pictures, 0..100; None without a CLIP model.
        clip_real: that of the real ones.
    """

    prompts: int
    pictures: int
    scores: dict[str, float]
    kid: float | None
    clip: float | None
    clip_real: float | None


def draw(
    generate: Generate,
    asked: Sequence[Picture],
    per_prompt: int,
    seed: int,
    batch_size: int,
    progress: Progress = ignore_progress,
) -> Drawings:
    """Draw `per_prompt` pictures for the prompt of each of `asked`; picture k of all has the seed `seed` + k."""
    prompts = [row.text for row in asked for _ in range(per_prompt)]
    seeds = [(seed + k) % (MAX_SEED + 1) for k in range(len(prompts))]
    images = []
    for start in range(0, len(prompts), batch_size):
        batch = slice(start, start + batch_size)
        images.append(generate(prompts[batch], seeds[batch]).float().clamp(-1, 1).cpu())
        progress("drawing", min(start + batch_size, len(prompts)), len(prompts))
    return Drawings(tuple(asked), torch.cat(images), per_prompt)


def score_drawings(
    network: EfficientNetLite0, gallery: Gallery, drawings: Drawings, clip: ImageTextModel | None
) -> DrawingScore:
    """Compare drawings with the real pictures of the same prompts; every drawing is a query of its own."""
    asked = [row for row in drawings.asked for _ in range(drawings.per_prompt)]
    features = extract(network, drawings.images)
    scores = {} if gallery.retrieval is None else gallery.retrieval.search(features, asked).shares()
    # At the model's own size: sharpness that a 64 px model cannot have is not held against it here.
    real = gallery.pictures.load(drawings.asked, drawings.images.shape[-1])
    prompts = torch.arange(len(real))
    groups = prompts.repeat_interleave(drawings.per_prompt), prompts
    distance = kid(features.head, extract(network, real).head, *groups) if len(real) > 1 else None
    clips = (None, None)
    if clip is not None:
        texts = [row.text for row in drawings.asked]
        clips = clip_score(clip, drawings.images, [row.text for row in asked]), clip_score(clip, real, texts)
    return DrawingScore(len(drawings.asked), len(asked), scores, distance, *clips)
