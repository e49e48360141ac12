import time

import pytest
import torch

from latent_diffusion.data.bpe import clip_tokenizer, train_byte_pairs
from latent_diffusion.errors import ConfigError, LatentDiffusionWarning
from latent_diffusion.models.clip_text import CLIPTextConfig, CLIPTextModel
from latent_diffusion.models.text_encoder import TextEncoder


def make(missing_rows: int = 0, **changes) -> TextEncoder:
    torch.manual_seed(0)
    tokenizer = clip_tokenizer(train_byte_pairs(["a red apple and a blue bird"], 560))
    vocab_size = len(tokenizer) - missing_rows
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = CLIPTextConfig(
        vocab_size=vocab_size, **sizes, **{**ids, "pad_token_id": tokenizer.pad_token_id, **changes}
    )
    return TextEncoder(CLIPTextModel(config).eval(), tokenizer)


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return make()


@torch.no_grad()
def test_prompts_become_states(encoder):
    conditioning = encoder(["a red apple", ""])
    assert conditioning.context.shape == (2, 77, 32) and conditioning.context.dtype == torch.float32
    ids = encoder.tokenize(["a red apple", ""])
    assert torch.equal(conditioning.context, encoder.model(input_ids=ids).last_hidden_state)
    assert ids.shape == (2, 77) and ids[1].tolist() == [encoder.tokenizer.bos_token_id] + 76 * [ids[1, 1].item()]
    assert torch.allclose(encoder(["a red apple"]).context[0], conditioning.context[0], atol=1e-6)


@torch.no_grad()
def test_padding_cannot_change_the_text(encoder):
    ids = encoder.tokenize(["a red apple"])
    end = int((ids[0] == encoder.tokenizer.eos_token_id).int().argmax())
    other = ids.clone()
    other[0, end + 1 :] = 7
    before, after = encoder.encode(ids), encoder.encode(other)
    assert torch.equal(before[:, : end + 1], after[:, : end + 1]) and not torch.equal(before, after)


@torch.no_grad()
def test_clip_skip_leaves_out_layers_and_keeps_the_norm(encoder):
    ids = encoder.tokenize(["a red apple"])
    hidden = encoder.model(input_ids=ids, output_hidden_states=True).hidden_states
    for skip in (1, 2):
        assert torch.allclose(encoder.encode(ids, skip), encoder.model.final_layer_norm(hidden[-1 - skip]), atol=1e-6)
    assert torch.equal(encoder.encode(ids, 0), encoder.encode(ids))
    for wrong in (-1, 3):
        with pytest.raises(ConfigError, match="0 to 2"):
            encoder.encode(ids, wrong)


def test_a_long_prompt_is_cut_and_said(encoder):
    with pytest.warns(LatentDiffusionWarning, match="80 tokens or more; only the first 75"):
        ids = encoder.tokenize(["bird " * 80])
    assert ids[0, -1] == encoder.tokenizer.eos_token_id and (ids[0, :-1] != encoder.tokenizer.eos_token_id).all()
    assert encoder.token_counts(["bird " * 80, "", "a bird"]) == [80, 0, 2]


@pytest.mark.parametrize("prompt", ["x" * 10**6, "\U0001f600" * 10**5, " " * 10**6 + "a", "a " * 500_000])
def test_a_huge_prompt_costs_little(encoder, prompt):
    encoder.token_counts(["warm"])
    start = time.process_time()
    count = encoder.token_counts([prompt])[0]
    assert time.process_time() - start < 0.5  # 0.05 s when nothing else runs
    assert count == 1 if prompt.endswith(" a") else count > 75 or count == 1


def test_half_a_character_is_refused(encoder):
    with pytest.raises(ConfigError, match="character 2 "):
        encoder.tokenize(["a \ud800"])


def test_a_foreign_tokenizer_is_refused():
    with pytest.raises(ConfigError, match="rows"):
        make(missing_rows=1)
    with pytest.raises(ConfigError, match="end id"):
        make(eos_token_id=5)
    make(eos_token_id=2)  # what configs said before the model learned to look for its end token
