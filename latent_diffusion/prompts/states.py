"""Texts -> conditions: each text as the chunks of each tower, all chunks through it at once, weights applied."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latent_diffusion.conditioning import Conditioning
from latent_diffusion.models.text_encoder import Encoded, TextEncoder, TextEncoders, join_towers
from latent_diffusion.prompts.chunks import Chunks, read_chunks
from latent_diffusion.prompts.emphasis import weigh

__all__ = ["Reading", "Text", "encode_texts", "read_text"]

AT_ONCE = 256  # chunks; bounds the memory of encoding many long prompts


@dataclass(frozen=True)
class Text:
    """One text to be encoded."""

    first: str
    second: str | None = None  # what the second tower reads instead; None = the same

    @property
    def empty(self) -> bool:
        """Whether the text is empty."""
        return not self.first and not self.second


@dataclass(frozen=True)
class Reading:
    """How texts are read."""

    emphasis: str  # one of `options.call.Emphasis`
    long_prompt: str  # one of `options.call.LongPrompt`
    clip_skip: int | None


def read_text(encoder: TextEncoder | TextEncoders, text: Text, how: Reading) -> tuple[Chunks, ...]:
    """Return `text` as each tower reads it.

    Raises:
        ConfigError: it is longer than `how` allows.
    """
    parts = (text.first, text.first if text.second is None else text.second)
    return tuple(
        read_chunks(tower, part, syntax=how.emphasis != "none", long_prompt=how.long_prompt)
        for tower, part in zip(encoder.towers, parts, strict=False)
    )


@torch.no_grad()
def encode_texts(encoder: TextEncoder | TextEncoders, texts: Sequence[Text], how: Reading) -> list[Conditioning]:
    """Return the condition of each text: context (1, n L, D) float32 for n chunks, pooled (1, P) of the first chunk.

    Raises:
        ConfigError: a text is longer than `how` allows.
    """
    read = [read_text(encoder, text, how) for text in texts]
    counts = [max(map(len, towers)) for towers in read]
    columns = [_encode([towers[k] for towers in read], counts, how) for k in range(len(encoder.towers))]
    return [join_towers([_one_after_the_other(part) for part in row]) for row in zip(*columns, strict=True)]


def _encode(texts: Sequence[Chunks], counts: Sequence[int], how: Reading) -> list[Encoded]:
    """Return what one tower makes of each text: states (n, L, D) and pooled (n, P) of its n chunks."""
    tower = texts[0].tower
    rows = [chunks.rows(count) for chunks, count in zip(texts, counts, strict=True)]
    ids, weights = (torch.cat(column) for column in zip(*rows, strict=True))
    parts = [tower.run(part, how.clip_skip) for part in ids.split(AT_ONCE)]
    states = weigh(torch.cat([part.states for part in parts]), weights, how.emphasis, _empty(tower, weights, how))
    pooled = None if parts[0].pooled is None else torch.cat([part.pooled for part in parts if part.pooled is not None])
    split = [None] * len(counts) if pooled is None else pooled.split(list(counts))
    return [Encoded(*pair) for pair in zip(states.split(list(counts)), split, strict=True)]


def _empty(tower: TextEncoder, weights: Tensor, how: Reading) -> Tensor | None:
    """Return the states (1, L, D) of the empty prompt where the emphasis starts from them."""
    if how.emphasis != "comfy" or bool((weights == 1).all()):
        return None
    return tower.run(Chunks(tower, ((),)).rows(1)[0], how.clip_skip).states


def _one_after_the_other(part: Encoded) -> Encoded:
    """Put the chunks of one text behind each other; the pooled vector is the first chunk's, as in the A1111 web UI."""
    pooled = None if part.pooled is None else part.pooled[:1]
    return replace(part, states=part.states.flatten(0, 1)[None], pooled=pooled)
