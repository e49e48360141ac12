"""Words that are learned (textual inversion): new tokens whose vectors are trained in a frozen text encoder.

The vectors are rows behind those of the embedding table (`nn/grown_table.py`), so that nothing else can move.
Reference: Gal et al. 2022, arXiv:2208.01618, section 4.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from latent_diffusion.adapters.model_parts import tower_names
from latent_diffusion.adapters.words import Word, with_words
from latent_diffusion.checkpoint.components import Components
from latent_diffusion.config import Section
from latent_diffusion.errors import ConfigError
from latent_diffusion.models.text_encoder import TextEncoder
from latent_diffusion.nn.grown_table import GrownTable

__all__ = ["LearnedWords", "WordSettings", "learn_words"]


class WordSettings(Section):
    """A word that is learned."""

    token: str
    """The word, as captions and prompts have it: letters, digits, "-" and "_"; its file is named after it."""
    start: str = Field(min_length=1)
    """Known word or words whose vectors it starts from, in turn."""
    vectors: int = Field(default=1, ge=1, le=75)
    """Number of its vectors, each of which takes one place of a prompt."""

    @field_validator("token")
    @classmethod
    def _names_a_file(cls, token: str) -> str:
        if not re.fullmatch(r"\w[\w-]*", token):
            raise ValueError(
                f"{token!r} must consist of letters, digits, '-' and '_', since its file is named after it"
            )
        return token


@dataclass(frozen=True)
class LearnedWords:
    """A model that reads new words, and their vectors.

    Attributes:
        components: the model; all tensors but the rows are those of the model it was made of.
        rows: the vectors of all words by text tower, (n, D) each.
        words: the words as they were at the start; the counts of their vectors do not change.
    """

    components: Components
    rows: nn.ParameterDict
    words: Sequence[Word]

    def now(self, dtype: torch.dtype) -> tuple[Word, ...]:
        """Return the words with their vectors as they are now, on the CPU."""
        made: list[Word] = []
        places = dict.fromkeys(self.rows, 0)
        for word in self.words:
            vectors: dict[str, Tensor] = {}
            for tower, first in word.vectors.items():
                place = places[tower]
                vectors[tower] = self.rows[tower].detach()[place : place + len(first)].to("cpu", dtype, copy=True)
                places[tower] = place + len(first)
            made.append(replace(word, vectors=vectors))
        return tuple(made)


def learn_words(base: Components, settings: Sequence[WordSettings], captions: Iterable[str] | None) -> LearnedWords:
    """Return `base` with new words whose vectors can be trained; nothing of `base` changes.

    Args:
        base: the model.
        settings: the words.
        captions: all captions, each word in one of them at least; None where they are drawn without end.

    Raises:
        ConfigError: a word that the vocabulary has already or no caption has, or a start of more tokens than vectors.
    """
    tokens = [one.token for one in settings]
    if len(set(tokens)) != len(tokens):
        raise ConfigError(f"objective.words: {tokens} has one twice")
    towers = tower_names(base)
    words = [
        Word(one.token, {name: _first(tower, one) for name, tower in towers.items()}, file="", hash="")
        for one in settings
    ]
    components = with_words(base, words)
    rows: dict[str, nn.Parameter] = {}
    for name, tower in tower_names(components).items():
        rows[name] = nn.Parameter(torch.cat([word.vectors[name] for word in words]))
        table: Any = _table(towers[name]).weight
        _body(tower).embeddings.token_embedding = GrownTable(table, rows[name])
    if captions is not None:
        _check_captions(components, tokens, captions)
    return LearnedWords(components, nn.ParameterDict(rows), words)


def _body(tower: TextEncoder) -> Any:
    return getattr(tower.model, "text_model", tower.model)  # only a model with projection has this level


def _table(tower: TextEncoder) -> nn.Embedding:
    return _body(tower).embeddings.token_embedding


def _first(tower: TextEncoder, word: WordSettings) -> Tensor:
    """Return the vectors that a word starts from, (n, D)."""
    ids = [part for token in tower.token_ids(word.start) for part in token]
    if not 1 <= len(ids) <= word.vectors:
        raise ConfigError(
            f"objective.words: {word.token!r} starts from {word.start!r}, which has {len(ids)} tokens, with "
            f"{word.vectors} vectors; use one vector a token or more"
        )
    table = _table(tower).weight.detach()
    return torch.stack([table[ids[k % len(ids)]] for k in range(word.vectors)])


def _check_captions(components: Components, tokens: Sequence[str], captions: Iterable[str]) -> None:
    """Refuse words that would not be trained."""
    tower = components.text_encoder.towers[0]
    missing: Mapping[str, tuple[int, ...]] = {token: tower.token_ids(token)[0] for token in tokens}
    for caption in captions:
        if not missing:
            return
        found = {*tower.token_ids(caption)}
        missing = {token: ids for token, ids in missing.items() if ids not in found}
    if missing:
        raise ConfigError(
            f"objective.words: no caption has {' or '.join(map(repr, missing))}, so nothing would be learned; write "
            f"it into the captions of its pictures"
        )
