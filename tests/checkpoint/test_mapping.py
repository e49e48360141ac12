"""Large tensors stay on the disk until they are looked at, and are nobody else's."""

import gc
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from latent_diffusion.checkpoint.files.mapping import LARGE, page_out
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


def resident(file: Path) -> int:
    """Bytes of the file in this process's memory."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    return sum(
        int(next(line for line in lines if line.startswith("Rss:")).split()[1]) * 1024
        for head in lines
        if head.endswith(str(file))
    )


@linux
def test_a_piece_that_is_paged_out_keeps_its_numbers_and_what_was_written(tmp_path):
    file = tmp_path / "large.safetensors"  # pages leave memory in groups, which may reach beyond a small tensor
    save_file({"weight": torch.randn(2048, 2048)}, file)
    os.sync()
    weight = open_tensors(file)["weight"].fetch()
    weight[0, 0] = 7.0
    before, there = weight.clone(), resident(file)
    page_out(weight.data_ptr())
    if resident(file) == there:
        pytest.skip("this system, or the one of this folder's files, pages nothing out")
    assert resident(file) < there / 2 and torch.equal(weight, before)
    page_out(before.data_ptr())  # of another's memory nothing happens
    del weight
    gc.collect()
    assert mappings(file) == 0


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
