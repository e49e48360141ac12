"""A prompt of any length as rows of tokens that a text tower can read, each token with its weight.

A tower reads 77 tokens: begin, 75 of text, end. A longer prompt is read in chunks of 75, each with its own begin and
end, whose states are concatenated: cross-attention takes any number of them. So that no phrase is
torn apart, a chunk ends after its last comma where at most 20 tokens would move to the next. `BREAK` ends a chunk. All
as in the A1111 web UI, so that its prompts give the same rows here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latent_diffusion.errors import ConfigError, warn
from latent_diffusion.models.text_encoder import TextEncoder
from latent_diffusion.models.tokenizer import SPECIAL_TOKENS
from latent_diffusion.prompts.syntax import Span, parse_attention

__all__ = ["Chunks", "Token", "read_chunks"]

BACKTRACK = 20  # tokens that may move to the next chunk, so that a chunk ends after a comma


@dataclass(frozen=True)
class Token:
    """One token of text."""

    id: int
    weight: float  # 1 = as it is
    joined: bool = False  # to the one before: a learned word is not torn apart


@dataclass(frozen=True)
class Chunks:
    """One text as one tower reads it; at least one chunk, perhaps empty."""

    tower: TextEncoder
    chunks: tuple[tuple[Token, ...], ...]  # of at most context_length - 2 tokens each

    def __len__(self) -> int:
        """Number of chunks."""
        return len(self.chunks)

    @property
    def tokens(self) -> int:
        """Number of tokens of text, without begin, end and padding."""
        return sum(map(len, self.chunks))

    def rows(self, count: int) -> tuple[Tensor, Tensor]:
        """Return ids (count, L) int64 and weights (count, L) float32, empty chunks at the end where there are fewer."""
        length = self.tower.context_length
        tokenizer: Any = self.tower.tokenizer
        padding, begin, end = tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id
        ids = torch.full((count, length), padding, dtype=torch.int64)
        weights = torch.ones((count, length), dtype=torch.float32)
        for row, chunk in enumerate([*self.chunks, *[()] * (count - len(self))]):
            ids[row, : len(chunk) + SPECIAL_TOKENS] = torch.tensor([begin, *(token.id for token in chunk), end])
            weights[row, 1 : len(chunk) + 1] = torch.tensor([token.weight for token in chunk], dtype=torch.float32)
        return ids, weights


def read_chunks(tower: TextEncoder, text: str, *, syntax: bool = True, long_prompt: str = "chunk") -> Chunks:
    """Return `text` as the tower reads it.

    Args:
        tower: whose tokens they are.
        text: one text; schedules, AND and adapter tags are taken out before.
        syntax: whether brackets and BREAK mean anything; False reads every character as text.
        long_prompt: what happens to more than one chunk: "chunk" reads all, "truncate" the first alone with a warning
            that quotes what is lost, "error" refuses.

    Raises:
        ConfigError: `long_prompt` is "error" and the text has more than one chunk.
    """
    parts = parse_attention(text) if syntax else ((Span(text, 1.0),),)
    if len(parts) > 1 and not parts[-1]:
        parts = parts[:-1]  # nothing follows the last BREAK
    room = tower.context_length - SPECIAL_TOKENS
    comma = tower.token_ids(",")
    backtrack = 0 if long_prompt == "truncate" else BACKTRACK
    found: list[tuple[Token, ...]] = []
    for part in parts:
        tokens = [
            Token(id, span.weight, joined=place > 0)
            for span in part
            for word in tower.token_ids(span.text)
            for place, id in enumerate(word)
        ]
        found += _split(tokens, room, comma[0][0] if comma else -1, backtrack)
    if len(found) > 1 and long_prompt != "chunk":
        total = sum(map(len, found))
        message = f"prompt {text[:40]!r} has {total} tokens in {len(found)} chunks; this model reads {room} at once"
        if long_prompt == "error":
            raise ConfigError(f"{message}; shorten it, or use long_prompt 'chunk'")
        lost = tower.tokenizer.decode([token.id for chunk in found[1:] for token in chunk])
        warn(f"{message}; not read: {str(lost)[:200]!r}")
        found = found[:1]
    return Chunks(tower, tuple(found))


def _split(tokens: Sequence[Token], room: int, comma: int, backtrack: int) -> list[tuple[Token, ...]]:
    """Cut after `room` tokens, or earlier after a comma where fewer than `backtrack` tokens follow it."""
    chunks, start = [], 0
    while len(tokens) - start > room:
        end = start + room
        if tokens[end].id != comma:  # else the phrase ends here anyway
            nearest = range(end - 1, end - 1 - min(backtrack, room), -1)
            end = next((place + 1 for place in nearest if tokens[place].id == comma), end)
        whole = next((place for place in range(end, start, -1) if not tokens[place].joined), end)
        end = whole if whole > start else end  # a word of more than a chunk is torn all the same
        chunks.append(tuple(tokens[start:end]))
        start = end
    return [*chunks, tuple(tokens[start:])]
