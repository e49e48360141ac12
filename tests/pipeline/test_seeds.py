"""Seeds: what is accepted, what is reported, and that every image has its own stream."""

import pytest
import torch

from latent_diffusion.errors import ConfigError
from latent_diffusion.pipeline.call.seeds import noise_for

TOP = 2**32 - 1


def test_an_int_counts_up_and_a_list_is_taken_as_it_is():
    assert noise_for(7, None, 3)[1] == [7, 8, 9]
    assert noise_for([9, 9, 1], None, 3)[1] == [9, 9, 1]
    assert noise_for(TOP, None, 1)[1] == [TOP]


def test_none_draws_one_and_reports_it():
    first, second = noise_for(None, None, 2)[1], noise_for(None, None, 2)[1]
    assert first != second
    assert first[1] == first[0] + 1 and 0 <= first[0] <= TOP


@pytest.mark.parametrize("seed", [-1, 2**32, 2**53 + 1, 2**64, 1.5, "7", True, [1, -1], [1, True], [1], [1, 2, 3]])
def test_impossible_seeds_are_refused(seed):
    with pytest.raises(ConfigError, match="seed"):
        noise_for(seed, None, 2)


def test_counting_past_the_last_seed_is_refused():
    with pytest.raises(ConfigError, match=f"use 0 to {TOP - 1}"):
        noise_for(TOP, None, 2)


def test_generators_replace_seeds_and_equal_them():
    drawn = noise_for([3, 4], None, 2)[0].draw((4, 8, 8))
    generators = [torch.Generator().manual_seed(3), torch.Generator().manual_seed(4)]
    noise, seeds = noise_for(None, generators, 2)
    assert seeds == [3, 4]
    assert torch.equal(noise.draw((4, 8, 8)), drawn)
    with pytest.raises(ConfigError, match="exclude"):
        noise_for(1, generators, 2)
    with pytest.raises(ConfigError, match="2 entries for 3 images"):
        noise_for(None, generators, 3)


def test_one_generator_serves_the_whole_batch_as_in_diffusers():
    noise, _ = noise_for(None, torch.Generator().manual_seed(5), 2)
    expected = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(5))
    assert torch.equal(noise.draw((4, 8, 8)), expected)


def test_none_is_the_default_of_counts_and_strengths(tiny_pipeline):
    call = {"num_inference_steps": 1, "seed": 3, "output_type": "latent"}
    out = tiny_pipeline("a cat", num_images_per_prompt=None, variation_strength=None, **call)
    assert out.seeds == [3] and out.records[0].variation_seed is None
