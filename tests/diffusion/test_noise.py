"""Noise for sampling: one stream per image."""

import pytest
import torch

from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.errors import ConfigError


def test_batch_of_four_equals_four_singles_bit_for_bit():
    shape = (4, 9, 7)
    together = NoiseSource([5, 6, 7, 8])
    alone = [NoiseSource([seed]) for seed in (5, 6, 7, 8)]
    for _ in range(3):  # the initial noise and two ancestral draws
        assert torch.equal(together.draw(shape), torch.cat([source.draw(shape) for source in alone]))


def test_equals_diffusers_with_one_generator_per_image():
    from diffusers.utils.torch_utils import randn_tensor

    generators = [torch.Generator("cpu").manual_seed(seed) for seed in (1, 2)]
    wanted = randn_tensor((2, 4, 8, 8), generator=generators, device=torch.device("cpu"), dtype=torch.float32)
    assert torch.equal(NoiseSource([1, 2]).draw((4, 8, 8)), wanted)


def test_generators_are_used_as_they_are():
    generator = torch.Generator().manual_seed(3)
    first = NoiseSource([generator]).draw((1, 4, 4))
    assert torch.equal(first, NoiseSource([3]).draw((1, 4, 4)))
    assert not torch.equal(first, NoiseSource([generator]).draw((1, 4, 4)))  # it moved on


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_out_of_range_is_refused(seed):
    with pytest.raises(ConfigError, match="4294967295"):
        NoiseSource([seed])


def test_no_seed_is_refused():
    with pytest.raises(ConfigError):
        NoiseSource([])
