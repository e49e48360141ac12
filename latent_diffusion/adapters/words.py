"""Learned words (textual inversion): a token that stands for vectors of the text model's embedding table.

A new word is rows added to a copy of the table and one token added to a copy of the tokenizer, which the text encoder
then expands into the ids of those rows. The model that was loaded stays as it is.
Reference: Gal et al. 2022, arXiv:2208.01618, section 4.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from latent_diffusion.adapters.model_parts import tower_names, with_parts
from latent_diffusion.checkpoint.components import Components
from latent_diffusion.errors import ConfigError
from latent_diffusion.models.text_encoder import TextEncoder
from latent_diffusion.nn.shared_copy import shared_copy

__all__ = ["Word", "with_words"]


@dataclass(frozen=True)
class Word:
    """One learned word."""

    token: str  # what stands in the prompt
    vectors: Mapping[str, Tensor]  # text tower ("text_encoder", "text_encoder_2") -> (n, D)
    file: str
    hash: str  # first 12 hex digits of the file's SHA-256, as the A1111 web UI has it

    @property
    def names(self) -> tuple[str, ...]:
        """What each vector is called in the tokenizer: tok, tok_1, tok_2, ..., as diffusers has it."""
        count = max(len(vectors) for vectors in self.vectors.values())
        return (self.token, *(f"{self.token}_{k}" for k in range(1, count)))


def with_words(components: Components, words: Sequence[Word]) -> Components:
    """Return the model with `words` added; everything but tokenizers and tables is shared.

    Raises:
        ConfigError: a token that the vocabulary already has.
    """
    if not words:
        return components
    models = {name: shared_copy(tower.model) for name, tower in tower_names(components).items()}
    changed = with_parts(components, models)
    for name, tower in tower_names(changed).items():
        _teach(tower, [(word, word.vectors[name]) for word in words])
    return changed


def _teach(tower: TextEncoder, words: Sequence[tuple[Word, Tensor]]) -> None:
    """Add tokens and rows to one tower, whose modules are ours to change."""
    tower.tokenizer = tokenizer = copy.deepcopy(tower.tokenizer)
    first = tower.config.vocab_size  # the table may have more rows than the tokenizer ids
    _fill_up(tokenizer, first)
    tower.expansions = dict(tower.expansions)
    for word, vectors in words:
        names = word.names[: len(vectors)]
        for name in names:
            _add(tokenizer, name, word.file)
        ids: Any = tokenizer.convert_tokens_to_ids(list(names))
        tower.expansions[ids[0]] = tuple(ids)
    _grow(tower, torch.cat([vectors for _, vectors in words]))


def _add(tokenizer: Any, name: str, file: str) -> None:
    from tokenizers import AddedToken

    plain = name[0].isalnum() and name[-1].isalnum()  # then "cat" is not to be found inside "category"
    if name in tokenizer.get_vocab() or not tokenizer.add_tokens(
        [AddedToken(name, single_word=plain, normalized=True)]
    ):
        raise ConfigError(
            f"{file}: the tokenizer's vocabulary already has the word {name!r}; rename the file, or choose a name with "
            "token= in Python"
        )


def _fill_up(tokenizer: Any, size: int) -> None:
    """Give the ids below `size` that have no token one each, so that the next token gets the id `size`."""
    missing = size - len(tokenizer)
    if missing:
        tokenizer.add_tokens([f"<unused-{k}>" for k in range(missing)])


def _grow(tower: TextEncoder, rows: Tensor) -> None:
    """Add rows to the embedding table."""
    model: Any = tower.model
    body = getattr(model, "text_model", model)
    table = body.embeddings.token_embedding
    weight = table.weight
    grown = torch.cat([weight.detach(), rows.to(weight.device, weight.dtype)])
    table.weight = nn.Parameter(grown, requires_grad=weight.requires_grad)
    table.num_embeddings = len(grown)
    # Configs of before transformers 4.31 have the text end at the largest id, which would now be a learned word's.
    model.config = body.config = replace(model.config, vocab_size=len(grown), eos_token_id=tower.end_id)
    body.eos_token_id = tower.end_id
