"""Large tensors stay on the disk until they are looked at, and are nobody else's."""

import gc
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from latent_diffusion.checkpoint.files.mapping import LARGE
from latent_diffusion.checkpoint.files.safetensors_file import open_tensors
from latent_diffusion.checkpoint.files.weights import Weights, fill

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mapped on Linux, read elsewhere")
SIDE = 300  # of a matrix larger than LARGE in float32


@pytest.fixture
def file(tmp_path):
    tensors = {"weight": torch.randn(SIDE, SIDE), "bias": torch.randn(SIDE)}
    assert tensors["weight"].nbytes >= LARGE > tensors["bias"].nbytes
    save_file(tensors, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def mappings(file: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(file))


def load(file: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.device("meta"):
        network = nn.Linear(SIDE, SIDE)
    return fill(network, Weights(file, open_tensors(file)), dtype)


@linux
def test_a_mapping_lives_as_long_as_its_tensor(file):
    network = load(file)
    assert mappings(file) == 1
    view = network.weight.detach()[0]
    network.weight = None
    gc.collect()
    assert mappings(file) == 1 and view.isfinite().all()
    del view
    gc.collect()
    assert mappings(file) == 0
    assert load(file, torch.bfloat16).weight.dtype == torch.bfloat16 and mappings(file) == 0  # a cast keeps no piece


def test_writing_changes_neither_the_file_nor_another_tensor(file):
    before, stored = file.read_bytes(), open_tensors(file)
    first, second = stored["weight"].fetch(), stored["weight"].fetch()
    expected = second.clone()
    first.zero_()
    assert torch.equal(second, expected) and torch.equal(stored["weight"].fetch(), expected)
    del first
    gc.collect()
    assert torch.equal(second, expected) and file.read_bytes() == before


def test_training_what_was_mapped(file):
    network, twin = load(file), load(file)
    network.train()(torch.ones(1, SIDE)).sum().backward()
    torch.optim.SGD(network.parameters(), 0.1).step()
    assert torch.allclose(network.weight, twin.weight - 0.1, atol=1e-6) and network.weight.requires_grad


@pytest.mark.parametrize("shift", [0, 1, 4, 8])
def test_any_place_in_the_file(shift, tmp_path):
    """Headers of other writers may end anywhere; a tensor that starts between numbers is read, not mapped."""
    weight = torch.randn(SIDE, SIDE)
    header = b'{"weight":{"dtype":"F32","shape":[300,300],"data_offsets":[0,360000]}}'.ljust(80 + shift)
    file = tmp_path / "a.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + weight.numpy().tobytes())
    (stored,) = open_tensors(file).values()
    assert torch.equal(stored.fetch(), weight) and stored.mapped == (shift % 4 == 0)
