"""Vocabularies for models whose file has none: CLIP's own, which comes with the package, or one from a header.

Every published Stable Diffusion reads CLIP's byte pairs, so single files leave them out. A model trained with another
vocabulary carries it in the header of its single file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latent_diffusion.checkpoint.text_folder import load_tokenizer
from latent_diffusion.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

__all__ = ["clip_vocabulary", "tokenizer_of", "tokenizer_values"]

BUNDLED = Path(__file__).parent.parent / "bundled" / "clip_vocabulary"
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


def clip_vocabulary(pad_token: str, context_length: int = 77) -> "CLIPTokenizer":
    """Return CLIP's tokenizer; `pad_token` is the end token for OpenAI's towers, "!" for OpenCLIP's."""
    tokenizer = load_tokenizer(BUNDLED)
    tokenizer.add_special_tokens({"pad_token": pad_token})  # as when it is read from a folder
    tokenizer.model_max_length = context_length
    return tokenizer


def tokenizer_values(tokenizer: "CLIPTokenizer") -> dict[str, Any]:
    """Return what makes a tokenizer, for JSON; CLIP's own vocabulary is left out."""
    import json

    values: dict[str, Any] = {name: str(getattr(tokenizer, name)) for name in SPECIAL}
    values["model_max_length"] = tokenizer.model_max_length
    vocabulary = tokenizer.get_vocab()
    if vocabulary != load_tokenizer(BUNDLED).get_vocab():
        merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
        values["merges"] = [" ".join(pair) if isinstance(pair, list) else pair for pair in merges]
        values["vocabulary"] = sorted(vocabulary, key=vocabulary.__getitem__)
    return values


def tokenizer_of(values: Mapping[str, Any], place: str) -> "CLIPTokenizer":
    """Return the tokenizer that `tokenizer_values` described; `place` is where the values were found.

    Raises:
        CheckpointError: they are damaged.
    """
    from transformers import CLIPTokenizer

    special: dict[str, Any] = {name: values.get(name) for name in SPECIAL}
    length, words, merges = (values.get(name, ()) for name in ("model_max_length", "vocabulary", "merges"))
    if not all(isinstance(token, str) for token in special.values()) or type(length) is not int:
        raise CheckpointError(f"{place}: the tokenizer's special tokens or model_max_length are missing")
    if "vocabulary" not in values:
        return clip_vocabulary(special["pad_token"], length)
    try:
        pairs: Any = [tuple(pair.split(" ")) for pair in merges]
        vocab = {word: index for index, word in enumerate(words)}
        return CLIPTokenizer(vocab=vocab, merges=pairs, model_max_length=length, **special)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise CheckpointError(f"{place}: not a CLIP tokenizer: {' '.join(str(error).split())[:200]}") from None
