"""CLIP's tokenizer: text -> ids of byte pairs, by the `tokenizers` library.

Text is normalised (NFC, white space collapsed, lower case) and cut into words, a word into its UTF-8 bytes, which are
then merged pair by pair (Sennrich et al. 2016, arXiv:1508.07909). Methods have the names and results of transformers'
`CLIPTokenizer`, which is the same library behind an import of half a second.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend

__all__ = ["BOS", "END_OF_WORD", "EOS", "SPECIAL_TOKENS", "Tokenizer", "byte_symbols", "pairs_of", "symbols"]

BOS = "<|startoftext|>"
EOS = "<|endoftext|>"
END_OF_WORD = "</w>"
SPECIAL_TOKENS = 2  # begin and end of a row
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""Pattern of a word: special token, English ending, letters, one digit, or anything else (CLIP, simple_tokenizer)."""


class Tokenizer:
    """A vocabulary of byte pairs with its special tokens; learned words may be added."""

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        *,
        bos_token: str = BOS,
        eos_token: str = EOS,
        unk_token: str = EOS,
        pad_token: str = EOS,
        model_max_length: int = 77,
    ) -> None:
        """Take symbols with their ids, pairs in the order they are merged, and the special tokens among the symbols.

        Raises:
            Exception: of the tokenizers library, or KeyError: the parts do not fit each other.
        """
        self.bos_token, self.eos_token, self.unk_token = bos_token, eos_token, unk_token
        self._unknown = vocabulary[unk_token]
        self.model_max_length = model_max_length
        self.backend_tokenizer = _backend(vocabulary, merges, begin=bos_token, end=eos_token, unknown=unk_token)
        self._add_special(bos_token, eos_token, unk_token)
        self.pad_token = pad_token

    @property
    def pad_token(self) -> str:
        """What fills a row; like every special token it is found in a text as it stands."""
        return self._pad_token

    @pad_token.setter
    def pad_token(self, token: str) -> None:
        self._add_special(token)
        self._pad_token = token

    def _add_special(self, *tokens: str) -> None:
        from tokenizers import AddedToken

        self.backend_tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in tokens])

    @property
    def bos_token_id(self) -> int:
        """Id of the token that begins every row."""
        return self._id(self.bos_token)

    @property
    def eos_token_id(self) -> int:
        """Id of the token that ends a text."""
        return self._id(self.eos_token)

    @property
    def pad_token_id(self) -> int:
        """Id of the token that fills a row."""
        return self._id(self.pad_token)

    def _id(self, token: str) -> int:
        found = self.backend_tokenizer.token_to_id(token)
        return self._unknown if found is None else found

    def __len__(self) -> int:
        """Number of ids, added words counted."""
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)

    def __call__(self, text: str, *, add_special_tokens: bool = True, verbose: bool = True) -> dict[str, list[int]]:
        """Return {"input_ids": ids of the whole text, between begin and end unless told}; `verbose` changes nothing."""
        return {"input_ids": self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}

    def tokenize(self, text: str) -> list[str]:
        """Return the symbols of a text."""
        return self.backend_tokenizer.encode(text, add_special_tokens=False).tokens

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, as far as the normalisation left it."""
        text = self.backend_tokenizer.decode(list(ids), skip_special_tokens=False)
        return text.replace(END_OF_WORD, " ").strip()

    def get_vocab(self) -> dict[str, int]:
        """Return symbol -> id, added words included."""
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    @property
    def merges(self) -> list[tuple[str, str]]:
        """The pairs in the order they are merged."""
        return pairs_of(json.loads(self.backend_tokenizer.to_str())["model"]["merges"])

    def convert_ids_to_tokens(self, index: int) -> str:
        """Return the symbol of an id."""
        return self.backend_tokenizer.id_to_token(index) or self.unk_token

    def convert_tokens_to_ids(self, tokens: Sequence[str]) -> list[int]:
        """Return the ids of symbols."""
        return [self._id(token) for token in tokens]

    def add_tokens(self, tokens: "Sequence[str | AddedToken]") -> int:
        """Add words, which get the next ids; return how many were new."""
        return self.backend_tokenizer.add_tokens(list(tokens))


def symbols(merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Return symbol -> id in CLIP's order: bytes, bytes that end a word, merges, begin, and end as the largest."""
    letters = byte_symbols()
    ordered = [*letters, *(letter + END_OF_WORD for letter in letters), *(a + b for a, b in merges), BOS, EOS]
    return {symbol: index for index, symbol in enumerate(ordered)}


def byte_symbols() -> list[str]:
    """Return one printable character per byte value, in the order of CLIP's vocabulary (GPT-2's table).

    Printable Latin-1 characters stand for themselves and come first, the other bytes become U+0100, U+0101, ...
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(others)]


def pairs_of(merges: Sequence[str | Sequence[str]]) -> list[tuple[str, str]]:
    """Return merges as pairs; files have them as "a b" or as ["a", "b"].

    Raises:
        ValueError: one is no pair.
    """
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)
    return [(first, second) for first, second in pairs]


def _backend(
    vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], *, begin: str, end: str, unknown: str
) -> "Backend":
    """Return CLIP's pipeline over a vocabulary."""
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers import Tokenizer as Backend

    ids: Any = dict(vocabulary)
    pairs: Any = list(merges)
    backend: Any = Backend(
        models.BPE(
            vocab=ids, merges=pairs, continuing_subword_prefix="", end_of_word_suffix=END_OF_WORD, unk_token=unknown
        )
    )
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(
        (end, ids[end]), (begin, ids[begin]), trim_offsets=False, add_prefix_space=False
    )
    return backend
