"""Our text tower and tokenizer against transformers', bit for bit and id for id."""

import pytest
import torch
from transformers import CLIPTextConfig as TheirConfig
from transformers import CLIPTextModel as TheirModel
from transformers import CLIPTextModelWithProjection as TheirProjecting

from latent_diffusion.checkpoint.folder.tokenizer_folder import load_tokenizer, save_tokenizer, transformers_tokenizer
from latent_diffusion.checkpoint.folder.vocabulary import clip_vocabulary
from latent_diffusion.errors import ConfigError
from latent_diffusion.models.clip_text import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

SIZES = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
TEXTS = [
    *(
        "",
        " ",
        "a red apple",
        "A RED  apple\t!!",
        "don't they'll 's 'S",
        "12 3rd x2",
        "Éclair e\u0301 ﬁ Ⅷ",
        "日本語 한국어",
    ),
    *(
        "😀👩‍👩‍👧\u200d",
        "a<|endoftext|>b <|startoftext|>",
        "!",
        "no! !!",
        "\x00\x1f\x7f",
        "ß İ ǅ",
        "x" * 200,
        "</w> a</w>",
    ),
]


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("end", [2, 59])
@torch.no_grad()
def test_it_computes_what_transformers_computes(act, end):
    torch.manual_seed(0)
    ids = torch.randint(3, 59, (2, 77))
    ids[:, 9] = 59
    for theirs, ours in ((TheirModel, CLIPTextModel), (TheirProjecting, CLIPTextModelWithProjection)):
        values = {**SIZES, "hidden_act": act, "eos_token_id": end, "projection_dim": 20}
        expected, found = theirs(TheirConfig(**values)).eval(), ours(CLIPTextConfig(**values)).eval()
        weights = expected.state_dict()
        if theirs is TheirModel:  # transformers 5.0 has one level more
            weights = {name.removeprefix("text_model."): weight for name, weight in weights.items()}
        assert list(found.state_dict()) == list(weights)  # digests of weights depend on the order
        found.load_state_dict(weights)
        expected, found = (network(input_ids=ids, output_hidden_states=True) for network in (expected, found))
        assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
        assert all(map(torch.equal, found.hidden_states, expected.hidden_states)) and len(found.hidden_states) == 4
        if theirs is TheirProjecting:
            assert torch.equal(found.text_embeds, expected.text_embeds)
        else:
            assert torch.equal(found.pooler_output, expected.pooler_output)


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden_act", "relu"), ("num_attention_heads", 5), ("hidden_size", "wide"), ("layer_norm_eps", float("nan"))],
)
def test_configs_that_cannot_be(field, value):
    with pytest.raises(ConfigError, match=field if field != "num_attention_heads" else "multiple of 5 heads"):
        CLIPTextConfig(**SIZES | {field: value})


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_ids_are_those_of_transformers(pad, tmp_path):
    from transformers import CLIPTokenizer

    ours = clip_vocabulary(pad)
    save_tokenizer(ours, tmp_path, 77)
    for theirs in (CLIPTokenizer.from_pretrained(str(tmp_path), local_files_only=True), transformers_tokenizer(ours)):
        for text in TEXTS:
            assert ours(text)["input_ids"] == theirs(text)["input_ids"], text
            plain = ours(text, add_special_tokens=False)["input_ids"]
            assert plain == theirs(text, add_special_tokens=False)["input_ids"]
            assert ours.decode(plain) == theirs.decode(plain, clean_up_tokenization_spaces=False)
        assert theirs.get_vocab() == ours.get_vocab() and theirs.pad_token_id == ours.pad_token_id


def test_words_that_other_tools_saved_with_a_tokenizer(tmp_path):
    theirs = transformers_tokenizer(clip_vocabulary("<|endoftext|>"))
    theirs.add_tokens(["<my-cat>", "sks"])
    theirs.save_pretrained(str(tmp_path))
    ours = load_tokenizer(tmp_path)
    for text in ("a photo of <my-cat>", "sks dog", "a <MY-CAT>"):
        assert ours(text)["input_ids"] == theirs(text)["input_ids"], text
    assert len(ours) == len(theirs) == 49410 and transformers_tokenizer(ours).get_vocab() == theirs.get_vocab()
