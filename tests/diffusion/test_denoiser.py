"""The denoiser: dtype policy, time, and the meaning of the output."""

import pytest
import torch

from latent_diffusion.conditioning import Conditioning
from latent_diffusion.diffusion.denoiser import Denoiser, at_times
from latent_diffusion.diffusion.prediction import EPSILON, MEAN, X0, V
from latent_diffusion.errors import ConfigError
from latent_diffusion.schedules.linear import LinearSchedule

SCHEDULE = LinearSchedule()
COND = Conditioning(torch.zeros(2, 3, 5))


class Spy:
    """A network that remembers what it was given and answers with a fixed tensor."""

    def __init__(self, answer):
        self.answer, self.projections = answer, 0

    def project(self, cond):
        self.projections += 1
        return cond.context

    def __call__(self, x, t, projected):
        self.seen = x, t, projected
        return self.answer.to(x.dtype)


@pytest.mark.parametrize("prediction", [EPSILON, V, X0, MEAN], ids=lambda p: p.name)
def test_right_output_gives_x0_back(prediction):
    x0, noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for time in (0, 1, 500):
        level, t = SCHEDULE.level(time), torch.full((2,), time)
        alpha, sigma, before = at_times(SCHEDULE, t, x0)
        x = level.alpha * x0 + level.sigma * noise
        spy = Spy(prediction.target(x0, noise, alpha, sigma, before))
        denoiser = Denoiser(spy, SCHEDULE, prediction, dtype=torch.float64)
        torch.testing.assert_close(denoiser.bind(COND)(x, level), x0, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(denoiser.bind_times(COND)(x, t), x0, rtol=1e-9, atol=1e-9)


def test_network_dtype_inside_float32_outside():
    spy = Spy(torch.zeros(2, 4, 8, 8))
    denoise = Denoiser(spy, SCHEDULE, V, dtype=torch.bfloat16).bind(COND)
    x0 = denoise(torch.randn(2, 4, 8, 8), SCHEDULE.level(640.5))
    x, t, projected = spy.seen
    assert (x.dtype, projected.dtype, t.dtype, x0.dtype) == (
        torch.bfloat16,
        torch.bfloat16,
        torch.float32,
        torch.float32,
    )
    assert t.tolist() == [640.5, 640.5]  # bfloat16 could not hold it


def test_condition_is_projected_once():
    spy = Spy(torch.zeros(2, 4, 8, 8))
    denoise = Denoiser(spy, SCHEDULE, V).bind(COND)
    for time in (900, 500, 100):
        denoise(torch.zeros(2, 4, 8, 8), SCHEDULE.level(time))
    assert spy.projections == 1


def test_n06_epsilon_with_zero_terminal_snr_is_refused():
    with pytest.raises(ConfigError, match="v_prediction"):
        Denoiser(Spy(torch.zeros(1)), LinearSchedule(zero_terminal_snr=True), EPSILON)


def test_x0_and_output_are_inverse():
    denoiser = Denoiser(Spy(torch.zeros(1)), SCHEDULE, EPSILON)
    x, x0 = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64)
    level = SCHEDULE.level(700)
    torch.testing.assert_close(denoiser.x0(denoiser.output(x0, x, level), x, level), x0)
