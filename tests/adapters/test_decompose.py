"""Adapters made from weights: exact where the rank suffices, the best of their rank where it does not."""

import copy
from dataclasses import replace

import pytest
import torch

from latent_diffusion.adapters.decompose import decompose, extract, merge
from latent_diffusion.adapters.lora_file import read_lora
from latent_diffusion.adapters.merge import adapted
from latent_diffusion.adapters.model_parts import parts_of, with_parts
from latent_diffusion.adapters.writing import write_factors, write_lora
from latent_diffusion.errors import CheckpointError, ConfigError


def weights(components, part="unet"):
    return torch.cat([p.flatten() for p in parts_of(components)[part].parameters()])


def with_adapter(components, adapter, strength=1.0):
    parts = {
        name: adapted(part, [(adapter.updates.get(name, {}), strength)]) for name, part in parts_of(components).items()
    }
    return with_parts(components, parts)


@pytest.fixture
def saved(tiny_components, random_lora, tmp_path):
    def make(seed, rank):
        write_lora(tmp_path / f"{seed}.safetensors", random_lora(seed, rank=rank))
        return read_lora(tmp_path / f"{seed}.safetensors", tiny_components)

    return make


def test_an_adapter_extracted_from_a_model_makes_that_model(tiny_components, saved, tmp_path):
    tuned = with_adapter(tiny_components, saved(1, 3))
    made = extract(tiny_components, tuned, rank=3)
    assert made.error < 1e-5 and set(made.ranks.values()) == {3} and not made.skipped
    write_factors(tmp_path / "out.safetensors", made.factors)
    again = with_adapter(tiny_components, read_lora(tmp_path / "out.safetensors", tiny_components))
    for part in parts_of(tiny_components):
        torch.testing.assert_close(weights(again, part), weights(tuned, part), rtol=1e-5, atol=1e-5)


def test_a_lower_rank_is_the_best_of_its_rank():
    """The error is that of the singular values left out (Eckart & Young), and no other factors do better."""
    draw = torch.Generator().manual_seed(0)
    matrix = torch.randn(12, 20, generator=draw)
    up, down, missed = decompose(matrix, 5)
    values = torch.linalg.svdvals(matrix.double())
    assert missed == pytest.approx(float(values[5:].square().sum()), rel=1e-6)
    assert float((matrix - up @ down).square().sum()) == pytest.approx(missed, rel=1e-4)


@pytest.mark.parametrize(("energy", "rank"), [(1.0, 3), (0.9, 1), (0.99, 2)])
def test_energy_chooses_the_smallest_rank_that_keeps_it(energy, rank):
    values = torch.tensor([10.0, 3.0, 1.0, 0.0])
    assert len(decompose(torch.diag(values), 4, energy)[1]) == rank


def test_several_adapters_as_one(tiny_components, saved, tmp_path):
    one, two = saved(1, 2), saved(2, 3)
    made = merge(tiny_components, [(one, 0.5), (two, -1.0)], rank=5)
    assert made.error < 1e-5
    write_factors(tmp_path / "both.safetensors", made.factors)
    found = with_adapter(tiny_components, read_lora(tmp_path / "both.safetensors", tiny_components))
    parts = {
        name: adapted(part, [(one.updates.get(name, {}), 0.5), (two.updates.get(name, {}), -1.0)])
        for name, part in parts_of(tiny_components).items()
    }
    wanted = with_parts(tiny_components, parts)
    torch.testing.assert_close(weights(found), weights(wanted), rtol=1e-5, atol=1e-5)


def test_resizing_loses_what_it_reports(tiny_components, saved):
    adapter = saved(1, 4)
    made = merge(tiny_components, [(adapter, 1.0)], rank=2)
    assert set(made.ranks.values()) == {2} and 0.1 < made.error < 0.9
    assert merge(tiny_components, [(adapter, 1.0)], rank=4).error < 1e-5


def test_changes_without_factors_are_named(tiny_components, saved):
    tuned = with_adapter(tiny_components, saved(1, 2))
    unet = copy.deepcopy(tuned.unet)
    with torch.no_grad():
        unet.conv_norm_out.weight.mul_(2)
    assert extract(tiny_components, replace(tuned, unet=unet), rank=2).skipped == ("unet.conv_norm_out.weight",)


def test_what_cannot_be_is_refused(tiny_components, saved):
    with pytest.raises(ConfigError, match="nothing to write"):
        extract(tiny_components, tiny_components, rank=2)
    with pytest.raises(ConfigError, match="rank 0"):
        merge(tiny_components, [(saved(1, 2), 1.0)], rank=0)
    with pytest.raises(ConfigError, match="energy"):
        merge(tiny_components, [(saved(2, 2), 1.0)], rank=1, energy=0.0)
    other = copy.deepcopy(tiny_components.unet)
    other.conv_in = torch.nn.Conv2d(9, other.conv_in.out_channels, 3, padding=1)
    with pytest.raises(CheckpointError, match="conv_in"):
        extract(tiny_components, replace(tiny_components, unet=other), rank=2)
