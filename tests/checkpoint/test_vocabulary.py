"""CLIP's vocabulary from the package, and vocabularies that travel in a header."""

import pytest

from latent_diffusion.checkpoint.vocabulary import clip_vocabulary, tokenizer_of, tokenizer_values
from latent_diffusion.data.bpe import clip_tokenizer, train_byte_pairs

TEXTS = ["a photo of a cat", "Héllo wörld 123 don't", "日本語 😀", "x" * 60, "(a:1.2), [b]"]
END, PAD = "<|endoftext|>", "!"


def test_it_is_clips():
    import open_clip

    theirs, ours = open_clip.get_tokenizer("ViT-L-14"), clip_vocabulary(END)
    assert len(ours) == 49408 and ours.model_max_length == 77 and ours.pad_token_id == 49407
    for text in TEXTS:
        assert ours(text)["input_ids"] == [i for i in theirs(text)[0].tolist() if i], text


@pytest.mark.parametrize("pad", [END, PAD])
def test_padding_as_in_the_published_folders(pad, tmp_path):
    from latent_diffusion.checkpoint.tokenizer_folder import load_tokenizer, save_tokenizer

    ours = clip_vocabulary(pad)
    save_tokenizer(ours, tmp_path / "tokenizer", 77)
    again = load_tokenizer(tmp_path / "tokenizer")
    for text in (*TEXTS, "no!", "!"):
        assert ours(text)["input_ids"] == again(text)["input_ids"]
    assert ours.pad_token_id == again.pad_token_id == (49407 if pad == END else 0)


@pytest.mark.parametrize("pad", [END, PAD])
def test_a_header_carries_any_vocabulary(pad):
    values = tokenizer_values(clip_vocabulary(pad))
    assert "vocabulary" not in values and tokenizer_of(values, "x")("no!")["input_ids"][2:] in (
        [0, 49407],
        [256, 49407],
    )
    own = clip_tokenizer(train_byte_pairs(["a red apple", "a blue car"], 540))
    values = tokenizer_values(own)
    again = tokenizer_of(values, "x")
    for text in TEXTS:
        assert own(text)["input_ids"] == again(text)["input_ids"]
