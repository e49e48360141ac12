"""Quantiles of the beta distribution against scipy and by their definition."""

import numpy as np
import pytest

from latent_diffusion.diffusion.beta_quantile import beta_cdf, beta_quantiles

SHARES = np.linspace(0.0, 1.0, 201)


@pytest.mark.parametrize("a,b", [(0.6, 0.6), (1.0, 1.0), (2.0, 5.0), (0.5, 3.0)])
def test_quantiles_are_scipys(a, b):
    scipy_stats = pytest.importorskip("scipy.stats")
    np.testing.assert_allclose(beta_quantiles(SHARES, a, b), scipy_stats.beta.ppf(SHARES, a, b), rtol=0, atol=1e-12)


def test_quantile_inverts_the_distribution():
    inside = beta_quantiles(SHARES[1:-1], 0.6, 0.6)
    np.testing.assert_allclose(beta_cdf(inside, 0.6, 0.6), SHARES[1:-1], rtol=1e-10)
    assert beta_quantiles(np.array([0.0, 0.5, 1.0]), 0.6, 0.6) == pytest.approx([0.0, 0.5, 1.0], abs=1e-12)
