"""CLIP's vocabulary from the package, and vocabularies that travel in a header."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

import latent_diffusion
from latent_diffusion.checkpoint.folder.vocabulary import clip_vocabulary, tokenizer_of, tokenizer_values
from latent_diffusion.data.bpe import clip_tokenizer, train_byte_pairs

TEXTS = ["a photo of a cat", "Héllo wörld 123 don't", "日本語 😀", "x" * 60, "(a:1.2), [b]"]
END, PAD = "<|endoftext|>", "!"


def test_it_is_clips():
    import open_clip

    theirs, ours = open_clip.get_tokenizer("ViT-L-14"), clip_vocabulary(END)
    assert len(ours) == 49408 and ours.model_max_length == 77 and ours.pad_token_id == 49407
    for text in TEXTS:
        assert ours(text)["input_ids"] == [i for i in theirs(text)[0].tolist() if i], text


def test_the_symbols_that_follow_from_the_merges_are_those_published():
    """The digest is that of CLIP's own vocab.json, written without blanks."""
    vocabulary = clip_vocabulary(END).get_vocab()
    ordered = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    text = json.dumps(ordered, ensure_ascii=False, separators=(",", ":")) + "\n"
    digest = "4845b0e575739dbabfda3b54f086884b37d73e94b067988d925a7e52bfdfb8e8"
    assert hashlib.sha256(text.encode()).hexdigest() == digest


PACKAGE = Path(latent_diffusion.__file__).parent


def test_the_package_stays_small():
    """Its data at most 40 MB; what git tracks under 68 MiB."""
    assert sum(file.stat().st_size for file in (PACKAGE / "bundled").rglob("*") if file.is_file()) <= 40_000_000
    if not (PACKAGE.parent / ".git").exists() or not shutil.which("git"):
        pytest.skip("no repository here")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=PACKAGE.parent, capture_output=True, check=True).stdout
    files = [PACKAGE.parent / name for name in names.decode().split("\0") if name]
    assert sum(file.lstat().st_size for file in files if file.is_file()) < 68 * 2**20


def test_other_tools_read_the_bundled_tokenizer():
    """Without tokenizer.json, which holds the same again."""
    from transformers import CLIPTokenizer

    from latent_diffusion.checkpoint.folder.tokenizer_folder import load_tokenizer

    folder = PACKAGE / "bundled" / "emoji" / "tokenizer"
    theirs, ours = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True), load_tokenizer(folder)
    for text in (*TEXTS, "a 3d render of a red apple"):
        assert theirs(text)["input_ids"] == ours(text)["input_ids"]


@pytest.mark.parametrize("pad", [END, PAD])
def test_padding_as_in_the_published_folders(pad, tmp_path):
    from latent_diffusion.checkpoint.folder.tokenizer_folder import load_tokenizer, save_tokenizer

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
