"""Reading a tokenizer's files."""

import gc

import pytest

from latent_diffusion.checkpoint.folder.tokenizer_folder import load_tokenizer, save_tokenizer
from latent_diffusion.checkpoint.folder.vocabulary import clip_vocabulary
from latent_diffusion.errors import CheckpointError


@pytest.mark.parametrize("collects", [True, False])
def test_garbage_is_collected_as_before(collects, tmp_path):
    save_tokenizer(clip_vocabulary("<|endoftext|>"), tmp_path, 77)
    was = gc.isenabled()
    try:
        (gc.enable if collects else gc.disable)()
        tokenizer = load_tokenizer(tmp_path)
        assert gc.isenabled() == collects and tokenizer("a red apple")["input_ids"]
        (tmp_path / "vocab.json").write_text("[]")
        with pytest.raises(CheckpointError, match=r"vocab\.json"):
            load_tokenizer(tmp_path)
        assert gc.isenabled() == collects
    finally:
        (gc.enable if was else gc.disable)()
