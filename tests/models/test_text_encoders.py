"""Two towers as one text encoder, and where in a tower its states come from."""

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from latent_diffusion.data.bpe import clip_tokenizer, train_byte_pairs
from latent_diffusion.errors import ConfigError
from latent_diffusion.models.text_encoder import TextEncoder, TextEncoders, join_towers

PROMPTS = ["a red apple", ""]


def tower(width: int, projection: int | None = None, length: int = 77, penultimate: bool = True) -> TextEncoder:
    torch.manual_seed(width)
    tokenizer = clip_tokenizer(train_byte_pairs(["a red apple and a blue bird"], 560))
    sizes = {"hidden_size": width, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), **sizes, **ids, max_position_embeddings=length, projection_dim=projection or width
    )
    model = CLIPTextModel(config) if projection is None else CLIPTextModelWithProjection(config)
    return TextEncoder(model.eval(), tokenizer, penultimate=penultimate)


@pytest.fixture(scope="module")
def both() -> TextEncoders:
    return TextEncoders(tower(24), tower(32, projection=8))


@torch.no_grad()
def test_states_lie_side_by_side_and_the_second_is_pooled(both):
    found, (first, second) = both(PROMPTS), both.towers
    assert found.context.shape == (2, 77, 56) and both.width == 56
    assert found.pooled.shape == (2, 8) and both.pooled_width == 8
    ids = second.tokenize(PROMPTS)
    expected = second.model(input_ids=ids, output_hidden_states=True)
    assert torch.allclose(found.context[..., 24:], expected.hidden_states[-2], atol=1e-6)
    assert torch.allclose(found.pooled, expected.text_embeds, atol=1e-6)
    assert torch.allclose(found.context[..., :24], first.encode(ids), atol=1e-6)
    by_hand = join_towers([part.run(part.tokenize(PROMPTS)) for part in both.towers])
    assert torch.equal(by_hand.context, found.context) and torch.equal(by_hand.pooled, found.pooled)


@torch.no_grad()
def test_each_tower_may_read_its_own_prompt(both):
    found = both(["a red apple"], second=["a blue bird"])
    assert torch.equal(found.context[..., :24], both(["a red apple"]).context[..., :24])
    assert torch.equal(found.context[..., 24:], both(["a blue bird"]).context[..., 24:])
    assert torch.equal(found.pooled, both(["a blue bird"]).pooled)


@torch.no_grad()
def test_clip_skip_counts_from_the_penultimate_and_leaves_the_pooled_vector(both):
    plain, skipped = both(PROMPTS), both(PROMPTS, clip_skip=1)
    assert torch.equal(plain.pooled, skipped.pooled) and not torch.equal(plain.context, skipped.context)
    for wrong in (-1, 2):
        with pytest.raises(ConfigError, match="3 layers, so 0 to 1"):
            both(PROMPTS, clip_skip=wrong)


def test_counts_and_lengths(both):
    assert both.token_counts(["a red apple", ""]) == [3, 0] and both.context_length == 77
    with pytest.raises(ConfigError, match="77 tokens, the second 40"):
        TextEncoders(tower(24), tower(32, projection=8, length=40))


@torch.no_grad()
def test_a_tower_alone_is_one_of_one():
    alone = tower(24, penultimate=False)
    assert alone.towers == (alone,) and alone.pooled_width == 0 and alone(PROMPTS).pooled is None
    refiner = tower(32, projection=8)
    assert refiner(PROMPTS).pooled.shape == (2, 8)
