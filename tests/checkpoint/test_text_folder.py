import json
import shutil

import pytest
import torch

from latent_diffusion.checkpoint.files.safetensors_file import read_tensors, write_tensors
from latent_diffusion.checkpoint.folder.text_folder import load_text_encoder, save_text_encoder
from latent_diffusion.errors import CheckpointError

AWKWARD = [
    "A RED Apple",
    "an éclair, a cafe\u0301",
    "😀👩‍👩‍👧",
    "don't!!! #1... 50%",
    "zyzzyva",
    "",
    "日本語",
    "apple " * 60,
    "x" * 60,
    " a \t\n b ",
]


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of the text parts that a test may damage."""
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(tiny_folder / part, tmp_path / part)
    return tmp_path


@torch.no_grad()
def test_plain_transformers_reads_what_we_write(tiny_folder):
    from transformers import CLIPTextModel, CLIPTokenizer

    ours = load_text_encoder(tiny_folder)
    model = CLIPTextModel.from_pretrained(str(tiny_folder / "text_encoder"), local_files_only=True).eval()
    tokenizer = CLIPTokenizer.from_pretrained(str(tiny_folder / "tokenizer"), local_files_only=True)
    ids = tokenizer(AWKWARD, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    assert tokenizer.model_max_length == 77
    assert torch.equal(ids, ours.tokenize(AWKWARD))
    assert (model(ids).last_hidden_state - ours(AWKWARD).context).abs().max() <= 1e-6


def test_vocab_json_and_merges_txt_alone_give_the_same_ids(folder):
    """As transformers 4 and single-file converters read them."""
    from transformers import CLIPTokenizer

    whole = CLIPTokenizer.from_pretrained(str(folder / "tokenizer"), local_files_only=True)
    (folder / "tokenizer" / "tokenizer.json").unlink()
    two = CLIPTokenizer.from_pretrained(str(folder / "tokenizer"), local_files_only=True)
    assert whole(AWKWARD)["input_ids"] == two(AWKWARD)["input_ids"]
    assert load_text_encoder(folder).tokenize(AWKWARD[:3]).shape == (3, 77)


def test_files_and_names_are_what_other_readers_need(folder):
    names = {file.name for file in (folder / "tokenizer").iterdir()}
    assert names == {"vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    tensors = read_tensors(folder / "text_encoder" / "model.safetensors")
    assert all(name.startswith("text_model.") and not name.startswith("text_model.text_model.") for name in tensors)
    config = json.loads((folder / "text_encoder" / "config.json").read_text())
    vocabulary = json.loads((folder / "tokenizer" / "vocab.json").read_text())
    assert config["architectures"] == ["CLIPTextModel"] and config["vocab_size"] == len(vocabulary)
    assert config["eos_token_id"] == config["pad_token_id"] == vocabulary["<|endoftext|>"] == len(vocabulary) - 1
    assert config["bos_token_id"] == vocabulary["<|startoftext|>"]


def test_round_trip_keeps_every_tensor(folder, tmp_path):
    first = load_text_encoder(folder)
    save_text_encoder(first, tmp_path / "again")
    second = load_text_encoder(tmp_path / "again")
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())
    for name in ("vocab.json", "merges.txt", "tokenizer.json"):
        assert (folder / "tokenizer" / name).read_bytes() == (tmp_path / "again" / "tokenizer" / name).read_bytes()
    save_text_encoder(first, tmp_path / "half", torch.float16)
    half = load_text_encoder(tmp_path / "half", torch.float16)
    assert {p.dtype for p in half.parameters()} == {torch.float16}


def test_names_without_the_prefix_and_old_buffers_are_read_too(folder):
    file = folder / "text_encoder" / "model.safetensors"
    tensors = {name.removeprefix("text_model."): value for name, value in read_tensors(file).items()}
    before = load_text_encoder(folder).state_dict()
    write_tensors(file, {**tensors, "embeddings.position_ids": torch.arange(77)[None]}, {"format": "pt"})
    after = load_text_encoder(folder).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def spoil(folder, what):
    weights, config = folder / "text_encoder" / "model.safetensors", folder / "text_encoder" / "config.json"
    values, tensors = json.loads(config.read_text()), read_tensors(weights)
    first = next(name for name in tensors if "fc1.weight" in name)
    if what == "no config":
        config.unlink()
    elif what == "config is a list":
        config.write_text("[]")
    elif what == "config of another size":
        config.write_text(json.dumps({**values, "num_hidden_layers": 1}))
    elif what == "config of another type":
        config.write_text(json.dumps({**values, "hidden_size": "wide"}))
    elif what == "tensor missing":
        write_tensors(weights, {k: v for k, v in tensors.items() if k != first}, {"format": "pt"})
    elif what == "tensor of another shape":
        write_tensors(weights, {**tensors, first: torch.zeros(2, 2)}, {"format": "pt"})
    elif what == "no tokenizer":
        shutil.rmtree(folder / "tokenizer")
    elif what == "broken vocabulary":
        (folder / "tokenizer" / "vocab.json").write_text("{")
    elif what == "foreign tokenizer":
        config.write_text(json.dumps({**values, "eos_token_id": 3}))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no config", "config.json"),
        ("config is a list", "JSON object"),
        ("config of another size", "unknown"),
        ("config of another type", "config.json"),
        ("tensor missing", "1 missing"),
        ("tensor of another shape", "fc1"),
        ("no tokenizer", "vocab.json and merges.txt missing"),
        ("broken vocabulary", "vocab.json"),
        ("foreign tokenizer", "do not belong together"),
    ],
)
def test_damage_is_named(folder, what, words):
    spoil(folder, what)
    with pytest.raises(CheckpointError, match=words):
        load_text_encoder(folder)
