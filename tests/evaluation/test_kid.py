import pytest
import torch

from latent_diffusion.errors import DataError
from latent_diffusion.evaluation.degrade import degrade
from latent_diffusion.evaluation.features import extract
from latent_diffusion.evaluation.kid import kid


def test_equals_the_definition_written_out():
    x, y = torch.randn(5, 7, dtype=torch.float64), torch.randn(4, 7, dtype=torch.float64)

    def k(a, b):
        return (float(a @ b) / 7 + 1) ** 3

    xx = sum(k(x[i], x[j]) for i in range(5) for j in range(5) if i != j) / 20
    yy = sum(k(y[i], y[j]) for i in range(4) for j in range(4) if i != j) / 12
    xy = sum(k(a, b) for a in x for b in y) / 20
    assert kid(x, y) == pytest.approx(1000 * (xx + yy - 2 * xy), rel=1e-12)


def test_is_unbiased():
    values = torch.tensor([kid(torch.randn(20, 8), torch.randn(30, 8)) for _ in range(300)])
    standard_error = values.std() / len(values) ** 0.5
    assert abs(values.mean()) < 3 * standard_error


def test_pairs_that_depend_on_each_other_do_not_bias_it():
    groups = torch.arange(10)
    values = []
    for _ in range(300):
        y = torch.randn(10, 8)
        x = 0.9 * y.repeat_interleave(2, dim=0) + 0.19**0.5 * torch.randn(20, 8)  # two near copies of each, as normal
        values.append(kid(x, y, groups.repeat_interleave(2), groups))
    values = torch.tensor(values)
    assert abs(values.mean()) < 3 * values.std() / len(values) ** 0.5
    assert kid(y, y, groups, groups) == pytest.approx(0, abs=1e-9)


def test_needs_two_pictures_a_side():
    with pytest.raises(DataError, match="at least two"):
        kid(torch.randn(1, 4), torch.randn(5, 4))


def test_grows_with_blur(network, drawings):
    images, _ = drawings
    real = extract(network, images).head
    distances = [kid(extract(network, degrade(images, how)).head, real) for how in ("64 px", "32 px")]
    pairs = torch.arange(len(real))
    assert kid(real, real, pairs, pairs) == pytest.approx(0, abs=1e-9)
    assert 1 < distances[0] < distances[1]
