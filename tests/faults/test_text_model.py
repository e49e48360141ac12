"""Text models that lie: refused before they take memory or time, and before they spoil a picture."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from latent_diffusion.checkpoint.files.json_file import read_json
from latent_diffusion.checkpoint.files.safetensors_file import read_header
from latent_diffusion.checkpoint.folder.text_folder import load_text_model
from latent_diffusion.errors import CheckpointError


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A text model of one's own to spoil."""
    return shutil.copytree(tiny_folder / "text_encoder", tmp_path / "text_encoder")


@pytest.mark.parametrize("spoil", [lambda t: t * float("nan"), lambda t: t.int()])
def test_weights_that_are_no_numbers(folder, spoil):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    save_file(tensors | {name: spoil(tensors[name])}, file)
    with pytest.raises(CheckpointError, match=name.removeprefix("text_model.")):
        load_text_model(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_hidden_layers", 10**6),
        ("num_hidden_layers", "x"),
        ("vocab_size", 10**10),
        ("max_position_embeddings", 10**11),
    ],
)
def test_sizes_beyond_all_memory(folder, field, value):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(CheckpointError, match=r"model\.safetensors|config\.json"):
        load_text_model(folder)


def test_json_nested_too_deeply(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_json(tmp_path / "a.json")


def test_numbers_of_a_header_too_long_to_print(tmp_path):
    huge = "9" * 4000
    header = f'{{"a": {{"dtype": "F32", "shape": [{huge}, {huge}], "data_offsets": [0, 4]}}}}'.encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CheckpointError, match="bad shape"):
        read_header(tmp_path / "a.safetensors")


def test_the_model_itself_still_loads(folder):
    assert all(torch.isfinite(p).all() for p in load_text_model(folder).parameters())
