"""Between two noises: as noisy as both, the ends exactly, one image at a time."""

import pytest
import torch

from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.slerp import slerp
from latent_diffusion.errors import ConfigError

SHAPE = (4, 16, 16)


def test_ends_are_exact_and_the_middle_keeps_its_spread():
    a, b = NoiseSource([1, 2, 3]).draw(SHAPE), NoiseSource([4, 5, 6]).draw(SHAPE)
    assert torch.equal(slerp(a, b, [0.0, 0.0, 0.0]), a)
    assert torch.equal(slerp(a, b, [1.0, 1.0, 1.0]), b)
    middle = slerp(a, b, [0.5] * 3)
    assert (middle.flatten(1).std(1) - 1).abs().max() < 0.05  # a plain mean has 0.71
    halfway = torch.nn.functional.cosine_similarity(middle.flatten(1), a.flatten(1))
    other = torch.nn.functional.cosine_similarity(middle.flatten(1), b.flatten(1))
    torch.testing.assert_close(halfway, other, rtol=0, atol=0.03)  # their norms differ a little


def test_equal_noises_stay_what_they_are():
    a = NoiseSource([1]).draw(SHAPE)
    torch.testing.assert_close(slerp(a, a.clone(), [0.3]), a, rtol=0, atol=1e-6)
    assert slerp(a, -a, [0.3]).isfinite().all()


def test_a_mixed_source_ends_at_both_and_mixes_each_image_alone():
    def mixed(first, second, shares):
        source = NoiseSource(first).towards(NoiseSource(second), shares)
        return [source.draw(SHAPE) for _ in range(2)]

    plain, other = NoiseSource([1, 2]), NoiseSource([7, 8])
    for start, end, drawn in zip(mixed([1, 2], [7, 8], [0.0, 0.0]), mixed([1, 2], [7, 8], [1.0, 1.0]), range(2)):
        assert torch.equal(start, plain.draw(SHAPE)), drawn
        assert torch.equal(end, other.draw(SHAPE)), drawn
    both = mixed([1, 2], [7, 8], [0.25, 0.75])
    alone = mixed([2], [8], [0.75])
    assert torch.equal(both[1][1:], alone[1])
    with pytest.raises(ConfigError, match="2 and 1 noise streams"):
        NoiseSource([1, 2]).towards(NoiseSource([3]), [0.5, 0.5])
