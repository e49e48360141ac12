"""Our float64 tables against diffusers' float32 ones."""

import numpy as np
import pytest

from latent_diffusion.errors import ConfigError
from latent_diffusion.registry import find
from latent_diffusion.schedules.scaled_linear import ScaledLinearSchedule

CASES = [
    ("linear", {"beta_schedule": "linear"}),
    ("scaled_linear", {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
    ("cosine", {"beta_schedule": "squaredcos_cap_v2"}),
]


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("name,config", CASES, ids=[case[0] for case in CASES])
def test_alpha_bar_is_diffusers(name, config, zero):
    """Absolute 1e-6: diffusers rounds 1 - beta to float32 a thousand times."""
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(rescale_betas_zero_snr=zero, **config).alphas_cumprod.numpy()
    ours = find("latent_diffusion.schedules", name)(zero_terminal_snr=zero).alphas_cumprod
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_stable_diffusion_values():
    """sigma / alpha of Stable Diffusion 1 runs from 0.0292 to 14.61, as its users know."""
    first, last = (ScaledLinearSchedule().level(t) for t in (0, 999))
    assert first.sigma / first.alpha == pytest.approx(0.02917, abs=1e-5)
    assert last.sigma / last.alpha == pytest.approx(14.6146, abs=1e-4)


def test_betas_outside_their_range_are_refused():
    with pytest.raises(ConfigError, match="betas"):
        ScaledLinearSchedule(beta_end=1.2)
