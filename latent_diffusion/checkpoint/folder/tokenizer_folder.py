"""Tokenizers <-> the `tokenizer/` folders of a diffusers model.

A tokenizer is its symbols and merges, in vocab.json and merges.txt or inside tokenizer.json, and its special tokens, in
tokenizer_config.json or the older special_tokens_map.json. transformers 5 writes tokenizer.json alone; we write all of
them, so that transformers 4 and 5, ComfyUI and single-file converters read the folder.
"""

import contextlib
import gc
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from latent_diffusion.checkpoint.files.json_file import read_json, write_json
from latent_diffusion.checkpoint.files.text_file import read_text
from latent_diffusion.errors import CheckpointError
from latent_diffusion.models.tokenizer import Tokenizer, pairs_of

__all__ = ["SPECIAL", "load_tokenizer", "read_merges", "save_tokenizer", "transformers_tokenizer"]

SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
VERSION = "#version: 0.2 - byte pairs, one merge a line"


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read a CLIP tokenizer from vocab.json and merges.txt, or from tokenizer.json where those are missing.

    Raises:
        CheckpointError: files are missing or damaged.
    """
    pair, single = (folder / "vocab.json", folder / "merges.txt"), folder / "tokenizer.json"
    missing = [file.name for file in pair if not file.is_file()]
    if missing and not single.is_file():
        raise CheckpointError(f"{folder}: {' and '.join(missing)} missing, and there is no tokenizer.json instead")
    settings = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        settings |= read_json(folder / name) if (folder / name).exists() else {}
    try:
        with _no_collection():
            whole = read_json(single) if single.exists() else {}
            model = whole["model"] if missing else {"vocab": read_json(pair[0]), "merges": read_merges(pair[1])}
            special = {name: _content(settings[name]) for name in SPECIAL if settings.get(name)}
            length = settings.get("model_max_length", 77)
            length = length if type(length) is int else 77
            found = Tokenizer(model["vocab"], pairs_of(model["merges"]), model_max_length=length, **special)
            _add(found, whole, settings)
            _check_ids(model["vocab"], folder)
    except CheckpointError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        raise CheckpointError(f"{folder}: not a CLIP tokenizer: {' '.join(str(error).split())[:200]}") from None
    return found


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Leave garbage where it is: over 100 000 pairs Python would look for it, in all of torch, as long as they take."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def read_merges(file: Path) -> list[str]:
    """Return the lines of a merges.txt, without its version.

    Raises:
        CheckpointError: it cannot be read.
    """
    return [line for line in read_text(file).split("\n") if line and not line.startswith("#version")]


def _check_ids(vocabulary: Mapping[str, int], folder: Path) -> None:
    """Refuse a vocabulary in which two symbols have one id.

    Raises:
        CheckpointError: naming two.
    """
    if len(set(vocabulary.values())) == len(vocabulary):
        return
    first: dict[int, str] = {}
    for symbol, index in vocabulary.items():
        if index in first:
            both = f"{first[index]!r} and {symbol!r}"
            raise CheckpointError(f"{folder}: its vocabulary has the id {index} twice, for {both}")
        first[index] = symbol


def _content(token: Any) -> str:
    """Return a special token, which is a text or an object with it."""
    return str(token["content"] if isinstance(token, Mapping) else token)


def _add(tokenizer: Tokenizer, whole: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Add the words that lie beyond the vocabulary: learned ones, saved with it by other tools.

    Raises:
        CheckpointError: their ids leave a gap.
    """
    from tokenizers import AddedToken

    listed = {int(index): token for index, token in settings.get("added_tokens_decoder", {}).items()}
    listed |= {token["id"]: token for token in whole.get("added_tokens", ())}
    known = tokenizer.get_vocab()
    for index, token in sorted(listed.items()):
        if token["content"] in known:
            continue
        if index != len(tokenizer):
            raise CheckpointError(f"the added word {token['content']!r} has id {index}, the next is {len(tokenizer)}")
        flags = {name: token[name] for name in ("single_word", "lstrip", "rstrip", "normalized") if name in token}
        tokenizer.add_tokens([AddedToken(token["content"], **flags)])


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context_length: int) -> None:
    """Write the five files of a CLIP tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend |= {"padding": None, "truncation": None}
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in backend["model"]["merges"]]
    write_json(folder / "tokenizer.json", backend)
    write_json(folder / "vocab.json", dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])))
    (folder / "merges.txt").write_text("\n".join([VERSION, *merges]) + "\n", "utf-8")
    flags = {"lstrip": False, "rstrip": False, "single_word": False}
    special: dict[str, Any] = {
        name: {"content": getattr(tokenizer, name), "normalized": True, **flags} for name in SPECIAL[:-1]
    }
    write_json(folder / "special_tokens_map.json", {**special, "pad_token": tokenizer.pad_token})
    values = {
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": True,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": context_length,
        "tokenizer_class": "CLIPTokenizer",
        **{name: getattr(tokenizer, name) for name in SPECIAL},
    }
    write_json(folder / "tokenizer_config.json", dict(sorted(values.items())))


def transformers_tokenizer(tokenizer: Tokenizer) -> Any:
    """Return transformers' `CLIPTokenizer` with the same symbols, merges, special tokens and added words."""
    from transformers import CLIPTokenizer

    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    special: dict[str, Any] = {name: getattr(tokenizer, name) for name in SPECIAL}
    merges: Any = tokenizer.merges
    twin = CLIPTokenizer(
        vocab=backend["model"]["vocab"], merges=merges, model_max_length=tokenizer.model_max_length, **special
    )
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    words: Any = [token for _, token in sorted(added.items()) if not token.special]
    twin.add_tokens(words)
    return twin
