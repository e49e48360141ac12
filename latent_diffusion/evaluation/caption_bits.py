"""How probable real pictures are under a model, and how many bits of a picture its caption explains.

Three figures a picture: -log2 p(latent | its own caption), p(latent | another picture's caption), and p(latent | empty
prompt), by the same noise and probes, so that their differences have little variance. Empty minus own is what the
caption explains. They are densities of latents: compare them between captions, or between models with the same
autoencoder, and not with bits of pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latent_diffusion.evaluation.gallery import Progress, ignore_progress
from latent_diffusion.evaluation.pictures import Picture, RealPictures

__all__ = ["LatentLikelihood", "LikelihoodScore", "score_likelihood"]


@dataclass(frozen=True)
class LatentLikelihood:
    """A model's likelihood of pictures.

    Attributes:
        dimensions: numbers of a latent.
        bits: images (B, 3, H, W) in [-1, 1], a prompt for each, and a number for each that names its noise ->
            negative log-likelihood (B,) of the latents, in bits a picture.
    """

    dimensions: int
    bits: Callable[[Tensor, Sequence[str], Sequence[int]], Tensor]


@dataclass(frozen=True)
class LikelihoodScore:
    """Negative log-likelihood of pictures' latents.

    Attributes:
        pictures: how many.
        dimensions: numbers of a latent.
        own, other, empty: bits a dimension given the picture's caption, another picture's, and the empty prompt.
        explained: bits a picture that the caption explains, the mean of empty - own.
        explained_error: its standard error.
    """

    pictures: int
    dimensions: int
    own: float
    other: float
    empty: float
    explained: float
    explained_error: float


def score_likelihood(
    model: LatentLikelihood,
    pictures: RealPictures,
    rows: Sequence[Picture],
    size: int,
    batch_size: int = 16,
    progress: Progress = ignore_progress,
) -> LikelihoodScore:
    """Return the likelihood of the pictures of `rows`, at least two, at `size` px."""
    captions = [row.text for row in rows]
    asked = captions, captions[1:] + captions[:1], [""] * len(rows)
    bits = torch.zeros(3, len(rows), dtype=torch.float64)
    for start in range(0, len(rows), batch_size):
        part = slice(start, start + batch_size)
        images, numbers = pictures.load(rows[part], size), range(len(rows))[part]
        for kind, prompts in enumerate(asked):
            bits[kind, part] = model.bits(images, prompts[part], numbers).double().cpu()
        progress("likelihoods", start + len(numbers), len(rows))
    own, other, empty = bits
    gain = empty - own
    return LikelihoodScore(
        pictures=len(rows),
        dimensions=model.dimensions,
        own=float(own.mean()) / model.dimensions,
        other=float(other.mean()) / model.dimensions,
        empty=float(empty.mean()) / model.dimensions,
        explained=float(gain.mean()),
        explained_error=float(gain.std()) / len(rows) ** 0.5,
    )
