"""Pages of mapped weights that are given back, and those that may not be."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from latent_diffusion.checkpoint.files.safetensors_file import open_tensors
from latent_diffusion.checkpoint.files.weights import Weights, fill
from latent_diffusion.runtime.cpu.pages import give_back

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mapped on Linux alone")
SIDE = 2000  # of a matrix of 16 MB


def resident(file: Path) -> int:
    """KiB of a file's mappings in memory."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    places = [k for k, line in enumerate(lines) if line.endswith(str(file))]
    return sum(int(next(x for x in lines[k:] if x.startswith("Rss")).split()[1]) for k in places)


@pytest.fixture
def network(tmp_path):
    with torch.device("meta"):
        empty = nn.Linear(SIDE, SIDE)
    file = tmp_path / "a.safetensors"
    save_file({"weight": torch.randn(SIDE, SIDE), "bias": torch.randn(SIDE)}, file)
    return fill(empty, Weights(file, open_tensors(file)), torch.float32), file


@torch.no_grad()
def test_what_was_read_goes_and_comes_back(network):
    linear, file = network
    x = torch.randn(3, SIDE)
    before = linear(x)
    if resident(file) == 0:
        pytest.skip("this kernel does not tell")
    give_back(linear)
    assert resident(file) < 100
    assert torch.equal(linear(x), before)


@pytest.mark.parametrize("at_once", [True, False])
def test_what_is_used_at_once_stays_after_the_check(at_once, tmp_path):
    file = tmp_path / "a.safetensors"
    save_file({"weight": torch.randn(SIDE, SIDE), "bias": torch.randn(SIDE)}, file)
    network = fill(nn.Linear(SIDE, SIDE, device="meta"), Weights(file, open_tensors(file)), None, at_once=at_once)
    found = resident(file)
    assert network.weight.sum().isfinite()
    if resident(file) == 0:
        pytest.skip("this kernel does not tell")
    assert (found > 10_000) == at_once


@torch.no_grad()
def test_what_was_written_to_stays(network):
    linear, _ = network
    linear.weight.data[7, :] = 5.0  # even so that autograd does not notice
    linear.bias += 1
    expected = linear.weight.clone(), linear.bias.clone()
    give_back(linear)
    assert torch.equal(linear.weight, expected[0]) and torch.equal(linear.bias, expected[1])


def test_weights_of_ordinary_memory_stay():
    linear = nn.Linear(SIDE, SIDE)
    expected = linear.weight.detach().clone()
    give_back(linear)
    assert torch.equal(linear.weight, expected)
