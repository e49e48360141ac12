"""A small byte-pair vocabulary in the file format of CLIP's tokenizer.

Text is normalised (NFC, white space collapsed, lower case) and cut into words the way CLIP does; each word becomes its
UTF-8 bytes, written as printable characters, the last one with the suffix `</w>`. The most frequent adjacent pair of
symbols is merged again and again (Sennrich et al. 2016, "Neural machine translation of rare words with subword
units", algorithm 1). All 256 bytes are in the vocabulary, so any text has ids and none is unknown.

Order of ids, as in CLIP's vocab.json: 256 bytes, 256 bytes with `</w>`, the merges, `<|startoftext|>`, `<|endoftext|>`.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from latent_diffusion.errors import ConfigError
from latent_diffusion.models.tokenizer import BOS, END_OF_WORD, EOS, SPECIAL_TOKENS, Tokenizer, byte_symbols, symbols

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

__all__ = ["BOS", "EOS", "BytePairs", "byte_symbols", "clip_tokenizer", "train_byte_pairs"]

Pair = tuple[str, str]


@dataclass(frozen=True)
class BytePairs:
    """A byte-pair vocabulary.

    Attributes:
        merges: pairs of symbols in the order they are merged.
    """

    merges: tuple[Pair, ...]

    @property
    def vocabulary(self) -> dict[str, int]:
        """Symbol -> id, in CLIP's order; the end token has the largest id."""
        return symbols(self.merges)


def train_byte_pairs(texts: Iterable[str], vocab_size: int) -> BytePairs:
    """Learn merges from `texts` until the vocabulary has `vocab_size` symbols or every word is one symbol.

    Ties go to the pair that sorts first, so equal texts (in any order) give equal merges.

    Raises:
        ConfigError: `vocab_size` leaves no room for the bytes and the special tokens.
    """
    base = 2 * 256 + SPECIAL_TOKENS
    if vocab_size < base:
        raise ConfigError(f"vocab_size: {vocab_size} is too small; the bytes and special tokens alone are {base}")
    words = Words(count_words(texts))
    merges: list[Pair] = []
    symbols: set[str] = set()
    while base + len(merges) < vocab_size:
        best = words.most_frequent()
        if best is None:
            break
        if best[0] + best[1] in symbols:  # ("ab", "c") after ("a", "bc"): a second merge to one symbol and id
            words.leave_apart(best)
            continue
        symbols.add(best[0] + best[1])
        merges.append(best)
        words.merge(best)
    return BytePairs(tuple(merges))


class Words:
    """The words of a text as lists of symbols, with a running count of the adjacent pairs."""

    def __init__(self, counts: Counter[str]) -> None:
        """Start from single characters; `counts` says how often each word occurs."""
        self.symbols = [[*word[:-1], word[-1] + END_OF_WORD] for word in counts]
        self.times = list(counts.values())
        self.pairs: Counter[Pair] = Counter()
        self.where: defaultdict[Pair, set[int]] = defaultdict(set)  # words a pair is or was in
        self.apart: set[Pair] = set()
        for index in range(len(self.symbols)):
            self._tally(index, 1)

    def _tally(self, index: int, sign: int) -> None:
        word = self.symbols[index]
        for pair in itertools.pairwise(word):
            self.pairs[pair] += sign * self.times[index]
            self.where[pair].add(index)

    def most_frequent(self) -> Pair | None:
        """Return the pair that occurs most often (the first of equals), or None when no pair is left."""
        pairs = [(-times, pair) for pair, times in self.pairs.items() if times > 0 and pair not in self.apart]
        return min(pairs)[1] if pairs else None

    def leave_apart(self, pair: Pair) -> None:
        """Never offer `pair` again."""
        self.apart.add(pair)

    def merge(self, pair: Pair) -> None:
        """Join `pair` wherever it occurs."""
        for index in self.where.pop(pair):
            self._tally(index, -1)
            self.symbols[index] = merge(self.symbols[index], pair)
            self._tally(index, 1)
        del self.pairs[pair]


def merge(word: list[str], pair: Pair) -> list[str]:
    """Return `word` with every occurrence of `pair`, from the left, joined into one symbol."""
    joined: list[str] = []
    index = 0
    while index < len(word):
        if index + 1 < len(word) and (word[index], word[index + 1]) == pair:
            joined.append(word[index] + word[index + 1])
            index += 2
        else:
            joined.append(word[index])
            index += 1
    return joined


def count_words(texts: Iterable[str]) -> Counter[str]:
    """Return how often each word occurs, words written in byte symbols, sorted by word."""
    splitter = byte_pair_model(BytePairs(()))
    counts: Counter[str] = Counter()
    for text, times in Counter(texts).items():
        normal = splitter.normalizer.normalize_str(text)
        for word, _ in splitter.pre_tokenizer.pre_tokenize_str(normal):
            counts[word] += times
    return Counter(dict(sorted(counts.items())))


def byte_pair_model(pairs: BytePairs) -> "Backend":
    """Return the bare tokenizer: CLIP's normalisation, word pattern and byte-pair model, without special tokens."""
    return clip_tokenizer(pairs).backend_tokenizer


def clip_tokenizer(pairs: BytePairs, context_length: int = 77) -> Tokenizer:
    """Return the tokenizer over `pairs`; begin, end and padding as in Stable Diffusion 1 (padding = end)."""
    return Tokenizer(pairs.vocabulary, pairs.merges, model_max_length=context_length)
