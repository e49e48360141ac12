"""Does a generated picture show what was asked, in the style that was asked? Answered by search among real pictures.

Every generated picture is a query against the real pictures:

- *name*: among the real pictures of the asked style, concept families are ranked by cosine. `name1`, `name5`: the
  asked family is first, is among the first five.
- *style*: a linear discriminant, fitted on real training pictures and degraded copies of some, names the style.
- *joint*: the nearest of all real pictures, whatever its style, has both the asked family and the asked style.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_diffusion.evaluation.features import Features
from latent_diffusion.evaluation.pictures import Picture
from latent_diffusion.evaluation.projection import Discriminant, Whitening

__all__ = ["Hits", "Retrieval"]

DIMENSIONS = {"texture": 64, "layout": 128, "content": 128, "head": 256}
NAME_BLOCKS = ("layout", "content", "head")
STYLE_WEIGHT = 0.25
"""Weight of the style cosine beside the name cosine in the joint search."""


@dataclass(frozen=True)
class Hits:
    """The queries that were right, each (Q,) bool."""

    name1: Tensor
    name5: Tensor
    style: Tensor
    joint1: Tensor

    def shares(self) -> dict[str, float]:
        """Return the share of right queries of each kind, 0..1."""
        return {kind: float(getattr(self, kind).float().mean()) for kind in ("name1", "name5", "style", "joint1")}


class Retrieval:
    """A searchable collection of real pictures.

    Args:
        rows: all real pictures, each with a style and a family; those of split `train` fit the projections. Near twins
            (`twin`) are not searched among.
        features: theirs, in the same order.
        copies: features of degraded training pictures, which teach the style rule that blur is not a style.
        copy_styles: the styles of the pictures copied.
    """

    def __init__(
        self, rows: Sequence[Picture], features: Features, copies: Features, copy_styles: Sequence[str]
    ) -> None:
        self.styles = sorted({row.style for row in rows})
        self.families = sorted({row.family for row in rows})
        self._style_number = {style: k for k, style in enumerate(self.styles)}
        self._family_number = {family: k for k, family in enumerate(self.families)}
        train = [index for index, row in enumerate(rows) if row.split == "train"]
        fitted = features[train]
        self._whitenings = {block: Whitening.fit(getattr(fitted, block), d) for block, d in DIMENSIONS.items()}
        self._fit_styles([rows[index].style for index in train], fitted, copies, copy_styles)

        searched = [index for index, row in enumerate(rows) if not row.twin]
        self.searched = [rows[index] for index in searched]
        self._row_number = {row.file: k for k, row in enumerate(self.searched)}
        self._style_of, self._family_of = self._labels(self.searched)
        gallery = features[searched]
        self._names, self._textures = self._name(gallery), self._texture(gallery)

    def _fit_styles(
        self, styles: Sequence[str], fitted: Features, copies: Features, copy_styles: Sequence[str]
    ) -> None:
        labels = torch.tensor([self._style_number[style] for style in [*styles, *copy_styles]])
        both = Features.cat([fitted, copies]) if len(copies) else fitted
        self._discriminant = Discriminant.fit(self._style_blocks(both), labels, len(self.styles))
        names = self._name(fitted)
        own = labels[: len(names)]
        self._style_means = torch.stack([names[own == k].mean(dim=0) for k in range(len(self.styles))])

    def _labels(self, rows: Sequence[Picture]) -> tuple[Tensor, Tensor]:
        """Return the style and the family number of each row, (N,) each."""
        styles = torch.tensor([self._style_number[row.style] for row in rows])
        return styles, torch.tensor([self._family_number[row.family] for row in rows])

    def _white(self, features: Features, block: str) -> Tensor:
        return self._whitenings[block](getattr(features, block))

    def _name(self, features: Features) -> Tensor:
        """Return unit vectors (N, 512): three blocks of equal weight."""
        blocks = [F.normalize(self._white(features, block), dim=1) for block in NAME_BLOCKS]
        return torch.cat(blocks, dim=1) / len(NAME_BLOCKS) ** 0.5

    def _texture(self, features: Features) -> Tensor:
        return F.normalize(self._white(features, "texture"), dim=1)

    def _style_blocks(self, features: Features) -> Tensor:
        return torch.cat([self._white(features, block) for block in ("texture", "content", "head")], dim=1)

    def search(self, queries: Features, asked: Sequence[Picture], without: Sequence[Picture] | None = None) -> Hits:
        """Judge each query against the real picture whose prompt it was drawn from.

        Args:
            queries: features of Q pictures.
            asked: the real picture that each query should match, Q of them.
            without: for each query, one real picture that it may not find (the one it was copied from).
        """
        styles, families = self._labels(asked)
        names, textures = self._name(queries), self._texture(queries)
        joint = names @ self._names.T + STYLE_WEIGHT * textures @ self._textures.T  # (Q, N)
        if without is not None:
            for query, row in enumerate(without):
                if row.file in self._row_number:
                    joint[query, self._row_number[row.file]] = -torch.inf
        best = joint.argmax(dim=1)
        rank = self._name_rank(names, styles, families)
        return Hits(
            name1=rank == 0,
            name5=rank < 5,
            style=self._discriminant(self._style_blocks(queries)) == styles,
            joint1=(self._style_of[best] == styles) & (self._family_of[best] == families),
        )

    def _name_rank(self, names: Tensor, styles: Tensor, families: Tensor) -> Tensor:
        """Return how many families of the asked style are nearer than the asked one, (Q,)."""
        rank = torch.empty(len(names), dtype=torch.long)
        for style in styles.unique().tolist():
            rows, gallery = styles == style, self._style_of == style
            mean = self._style_means[style]
            near = F.normalize(names[rows] - mean, dim=1) @ F.normalize(self._names[gallery] - mean, dim=1).T
            index = self._family_of[gallery].expand(len(near), -1)
            best = torch.full((len(near), len(self.families)), -torch.inf)
            best = best.scatter_reduce(1, index, near, reduce="amax")  # the nearest picture of each family
            right = best.gather(1, families[rows, None])
            # A family without a picture in this style (-inf) ranks last, never first among equals.
            rank[rows] = torch.where(right.isinf(), len(self.families), (best > right).sum(dim=1, keepdim=True))[:, 0]
        return rank
