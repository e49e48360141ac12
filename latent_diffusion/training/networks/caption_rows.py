"""Captions of any length as rows of tokens, read in training as they are in drawing.

A caption of more than 75 tokens is read in chunks of 75 (`prompts/chunks.py`), up to a number of chunks; what is longer
is cut. Captions of different numbers of chunks go through the network apart, so that none is padded for the others and
the loss of a picture does not depend on its neighbours.

The order of the sums in a product depends on its shapes and on the machine, not on the numbers. So if a few captions
give together, in one shape, the bits of each alone, all others do in this shape, and that is tried once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from latent_diffusion.conditioning import Conditioning
from latent_diffusion.models.text_encoder import LONGEST_TOKEN, Encoded, TextEncoder, TextEncoders, join_towers
from latent_diffusion.models.tokenizer import SPECIAL_TOKENS
from latent_diffusion.prompts.chunks import Chunks, read_chunks

__all__ = ["TOGETHER", "CaptionRows"]

TOGETHER = 4
"""Captions in one call of `encode_each`: 1.6 times as many a second as alone (CPU, 256 channels); 64 are no faster."""


class CaptionRows:
    """The tokens of captions, and their states, for one model's text encoder."""

    def __init__(self, encoder: TextEncoder | TextEncoders, most: int = 1) -> None:
        """Take the encoder and the largest number of chunks."""
        self.encoder, self.most = encoder, most
        self._counts: dict[str, int] = {}
        self._same: dict[int, bool] = {}  # by number of chunks: whether TOGETHER captions have the bits of each alone

    @property
    def room(self) -> int:
        """Tokens of a caption that are read."""
        return (self.encoder.context_length - SPECIAL_TOKENS) * self.most

    def count(self, caption: str) -> int:
        """Return the number of chunks of a caption."""
        if self.most == 1 or len(caption) <= self.encoder.context_length - SPECIAL_TOKENS:  # a token has a letter
            return 1
        if caption not in self._counts:
            self._counts[caption] = min(self.most, max(len(self._chunks(t, caption)) for t in self.encoder.towers))
        return self._counts[caption]

    def _chunks(self, tower: TextEncoder, caption: str) -> Chunks:
        return read_chunks(tower, caption[: LONGEST_TOKEN * self.room], syntax=False)

    def ids(self, caption: str) -> list[Tensor]:
        """Return the token ids of each tower, (n, L) int64 for n chunks."""
        count = self.count(caption)
        if count == 1:
            return [tower.tokenize([caption]) for tower in self.encoder.towers]
        read = [self._chunks(tower, caption) for tower in self.encoder.towers]
        return [Chunks(one.tower, one.chunks[:count]).rows(count)[0] for one in read]

    def groups(self, captions: Sequence[str]) -> list[list[int]]:
        """Return the places of the captions that have equally many chunks, fewest first."""
        found: dict[int, list[int]] = {}
        for place, caption in enumerate(captions):
            found.setdefault(self.count(caption), []).append(place)
        return [found[count] for count in sorted(found)]

    def encode(self, captions: Sequence[str]) -> Conditioning:
        """Return the states of B captions of n chunks each: context (B, n L, D), pooled (B, P) of the first chunks."""
        return self._run([self.ids(caption) for caption in captions])

    def encode_each(self, captions: Sequence[str]) -> Conditioning:
        """Return what `encode` gives for each caption alone, bit for bit; equal ones are encoded once."""
        distinct = {caption: place for place, caption in enumerate(dict.fromkeys(captions))}
        rows = [self.ids(caption) for caption in distinct]
        few = [rows[start : start + TOGETHER] for start in range(0, len(rows), TOGETHER)]
        made = Conditioning.cat([part for some in few for part in self._few(some)])
        places = torch.tensor([distinct[caption] for caption in captions], device=made.context.device)
        return made if len(distinct) == len(captions) else made.map(lambda states: states[places])

    def _few(self, rows: Sequence[list[Tensor]]) -> list[Conditioning]:
        """Return the states of up to TOGETHER captions, with the bits that each has alone."""
        chunks = len(rows[0][0])
        if len(rows) == TOGETHER and self._same.get(chunks, True):
            together = self._run(rows)
            if chunks in self._same:
                return [together]
            alone = [self._run([ids]) for ids in rows]
            self._same[chunks] = _equal(together, Conditioning.cat(alone))
            return alone
        return [self._run([ids]) for ids in rows]

    def _run(self, rows: Sequence[list[Tensor]]) -> Conditioning:
        """Return the states of captions from their token ids."""
        assert len({len(ids[0]) for ids in rows}) <= 1, "captions of one batch have equally many chunks"
        parts = []
        for tower, ids in zip(self.encoder.towers, zip(*rows, strict=True), strict=True):
            made = tower.run(torch.cat(ids))
            pooled = None if made.pooled is None else made.pooled.unflatten(0, (len(rows), -1))[:, 0]
            parts.append(Encoded(made.states.unflatten(0, (len(rows), -1)).flatten(1, 2), pooled))
        return join_towers(parts)


def _equal(one: Conditioning, other: Conditioning) -> bool:
    """Return whether text states have the same bits."""
    same = torch.equal(one.context, other.context)
    return same and (one.pooled is None or other.pooled is None or torch.equal(one.pooled, other.pooled))
