"""Two results are the same within the rounding of a number format, or they are not."""

import math

import torch

from latent_diffusion.runtime.agreement import agree, error

X = torch.tensor([3.0, 4.0])


def test_the_error_is_relative_and_of_the_whole_tensor():
    assert error(torch.tensor([3.0, 5.25]), X) == 0.25
    assert error(X, X) == 0.0
    assert error(X[:1], X) == error(X * math.nan, X) == math.inf


def test_coarser_formats_may_be_further_off():
    for dtype, right, wrong in (
        (torch.float32, 1 + 5e-6, 1 + 5e-5),
        (torch.bfloat16, 1.005, 1.05),
        (torch.float16, 1.001, 1.01),
    ):
        assert agree(right * X, X, dtype)
        assert not agree(wrong * X, X, dtype)
