import gzip
import random

import pytest

from latent_diffusion.data.bpe import BytePairs, byte_symbols, clip_tokenizer, train_byte_pairs
from latent_diffusion.errors import ConfigError

TEXTS = ["a 3d render of a red apple", "a clock showing two o'clock", "apples, red and green", "Red pepper!"] * 2
AWKWARD = [
    "",
    "   ",
    "A 3D Render of a RED Apple",
    "an éclair, a piñata, a cafe\u0301",
    "😀👩‍👩‍👧 \U0001f1e9\U0001f1ea",
    "don't!!! it's (they're) #1... 50% off <b>",
    "zyzzyva quokka antidisestablishmentarianism",
    "日本語 한국어 ру́сский عربى",
    "tabs\tand\nlines\r\n twice  spaced",
    "x" * 500,
    "apple " * 200,
    "\u200b\ufeff\x7f",
]


def test_ids_are_in_clips_order():
    pairs = train_byte_pairs(TEXTS, 540)
    vocabulary = pairs.vocabulary
    assert len(vocabulary) == 540 and sorted(vocabulary.values()) == list(range(540))
    assert (vocabulary["!"], vocabulary["!</w>"]) == (0, 256)
    assert (vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]) == (538, 539)
    assert len(set(byte_symbols())) == 256


def test_the_order_of_the_texts_does_not_matter():
    shuffled = random.Random(0).sample(TEXTS, len(TEXTS))
    assert train_byte_pairs(shuffled, 560) == train_byte_pairs(TEXTS, 560)


def test_merges_end_when_every_word_is_one_symbol():
    tokenizer = clip_tokenizer(train_byte_pairs(TEXTS, 10_000))
    assert tokenizer.tokenize("a red apple") == ["a</w>", "red</w>", "apple</w>"]


def test_every_symbol_is_made_in_one_way():
    pairs = train_byte_pairs(["abc abc ab bc c bcd abcd " * 5, "abcabc"], 600)
    joined = [a + b for a, b in pairs.merges]
    assert len(joined) == len(set(joined))


def test_begin_end_and_padding_are_those_of_stable_diffusion_1():
    pairs = train_byte_pairs(TEXTS, 530)
    tokenizer = clip_tokenizer(pairs)
    assert tokenizer("")["input_ids"] == [528, 529]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (528, 529, 529)
    assert tokenizer.model_max_length == 77


@pytest.mark.parametrize("text", AWKWARD)
def test_open_clips_tokenizer_gives_the_same_ids(text, tmp_path):
    """An independent implementation in Python, reading the same merges."""
    open_clip = pytest.importorskip("open_clip.tokenizer")
    pairs = train_byte_pairs(TEXTS, 600)
    file = tmp_path / "merges.txt.gz"
    file.write_bytes(gzip.compress("\n".join(["#version", *(" ".join(pair) for pair in pairs.merges)]).encode()))
    other = open_clip.SimpleTokenizer(str(file))
    other.clean_fn = lambda text: " ".join(__import__("unicodedata").normalize("NFC", text).split()).lower()
    other.bpe_ranks = {pair: rank for rank, pair in enumerate(pairs.merges)}
    assert clip_tokenizer(pairs)(text, add_special_tokens=False, verbose=False)["input_ids"] == other.encode(text)


def test_any_text_has_ids_and_comes_back():
    tokenizer = clip_tokenizer(BytePairs(()))
    draw = random.Random(0)
    for _ in range(50):
        text = "".join(chr(draw.choice([*range(0x20, 0xD800), *range(0xE000, 0x11000)])) for _ in range(20))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.eos_token_id not in ids
        normal = tokenizer.backend_tokenizer.normalizer.normalize_str(text)
        assert tokenizer.decode(ids).split() or not normal.split()


def test_a_vocabulary_smaller_than_the_bytes_is_refused():
    with pytest.raises(ConfigError, match="514"):
        train_byte_pairs(TEXTS, 513)
