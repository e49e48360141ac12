import pytest
import torch

from latent_diffusion.errors import DataError
from latent_diffusion.evaluation.recall import precision_and_recall


def test_equals_the_definition_written_out():
    real, drawn = torch.randn(9, 2, dtype=torch.float64), torch.randn(7, 2, dtype=torch.float64) + 1.5

    def within(point, members):
        for member in members:
            radius = sorted(float((other - member).norm()) for other in members)[2]  # the first is the member itself
            if float((point - member).norm()) <= radius:
                return 1
        return 0

    found = precision_and_recall(real, drawn, neighbours=2)
    assert 0 < found.precision < 1 and 0 < found.recall < 1
    assert found.precision == pytest.approx(sum(within(point, real) for point in drawn) / 7)
    assert found.recall == pytest.approx(sum(within(point, drawn) for point in real) / 9)


def test_a_lost_mode_halves_the_recall_and_leaves_the_precision():
    left, right = torch.randn(200, 3) - 10, torch.randn(200, 3) + 10
    both, one = torch.cat([left, right]), torch.randn(400, 3) - 10
    whole = precision_and_recall(both, torch.cat([torch.randn(200, 3) - 10, torch.randn(200, 3) + 10]))
    lost = precision_and_recall(both, one)
    assert min(whole) > 0.8
    assert lost.precision > 0.8 and 0.4 < lost.recall <= 0.5


def test_equal_sets_lie_among_each_other_and_distant_ones_do_not():
    points = torch.randn(20, 4)
    assert precision_and_recall(points, points) == (1.0, 1.0)
    assert precision_and_recall(points, points + 100) == (0.0, 0.0)


def test_needs_more_pictures_than_neighbours():
    with pytest.raises(DataError, match="at least 4"):
        precision_and_recall(torch.randn(3, 2), torch.randn(9, 2))
