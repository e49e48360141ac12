"""Vocabularies for models whose file has none: CLIP's own, which comes with the package, or one from a header.

Every published Stable Diffusion reads CLIP's byte pairs, so single files leave them out. A model trained with another
vocabulary carries it in the header of its single file.
"""

import bz2
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latent_diffusion.checkpoint.folder.tokenizer_folder import SPECIAL
from latent_diffusion.errors import CheckpointError
from latent_diffusion.models.tokenizer import Tokenizer, pairs_of, symbols

__all__ = ["clip_vocabulary", "tokenizer_of", "tokenizer_values"]

BUNDLED = Path(__file__).parent.parent.parent / "bundled" / "clip_vocabulary" / "merges.txt.bz2"


def clip_vocabulary(pad_token: str, context_length: int = 77) -> Tokenizer:
    """Return CLIP's tokenizer; `pad_token` is the end token for OpenAI's towers, "!" for OpenCLIP's."""
    merges = _merges()
    return Tokenizer(symbols(merges), merges, pad_token=pad_token, model_max_length=context_length)


def _merges() -> list[tuple[str, str]]:
    """Return CLIP's merges, from which its symbols and their ids follow."""
    return pairs_of(bz2.decompress(BUNDLED.read_bytes()).decode().split("\n")[1:-1])  # the first line is a version


def tokenizer_values(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what makes a tokenizer, for JSON; CLIP's own vocabulary is left out."""
    values: dict[str, Any] = {name: getattr(tokenizer, name) for name in SPECIAL}
    values["model_max_length"] = tokenizer.model_max_length
    vocabulary = tokenizer.get_vocab()
    if vocabulary != symbols(_merges()):
        values["merges"] = [" ".join(pair) for pair in tokenizer.merges]
        values["vocabulary"] = sorted(vocabulary, key=vocabulary.__getitem__)
    return values


def tokenizer_of(values: Mapping[str, Any], place: str) -> Tokenizer:
    """Return the tokenizer that `tokenizer_values` described; `place` is where the values were found.

    Raises:
        CheckpointError: they are damaged.
    """
    special: dict[str, Any] = {name: values.get(name) for name in SPECIAL}
    length, words, merges = (values.get(name, ()) for name in ("model_max_length", "vocabulary", "merges"))
    if not all(isinstance(token, str) for token in special.values()) or type(length) is not int:
        raise CheckpointError(f"{place}: the tokenizer's special tokens or model_max_length are missing")
    if "vocabulary" not in values:
        return clip_vocabulary(special["pad_token"], length)
    try:
        vocab = {word: index for index, word in enumerate(words)}
        return Tokenizer(vocab, pairs_of(merges), model_max_length=length, **special)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise CheckpointError(f"{place}: not a CLIP tokenizer: {' '.join(str(error).split())[:200]}") from None
