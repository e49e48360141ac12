"""The training loss (arXiv:2006.11239, eq. 12 and 14; arXiv:2303.09556)."""

import math

import pytest
import torch

from latent_diffusion.diffusion.bound import level_term
from latent_diffusion.diffusion.denoiser import at_times
from latent_diffusion.diffusion.forward import add_noise
from latent_diffusion.diffusion.loss import DiffusionLoss
from latent_diffusion.diffusion.prediction import EPSILON, MEAN, X0, V
from latent_diffusion.errors import ConfigError
from latent_diffusion.schedules.linear import LinearSchedule

SCHEDULE = LinearSchedule()
T = torch.tensor([0, 3, 400, 999])


def draw(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, len(T), 2, 4, 4, generator=generator, dtype=torch.float64).to(dtype)


def test_simple_loss_is_the_mean_square_of_the_noise_error():
    """Eq. 14: |noise - network(alpha x0 + sigma noise, t)|^2, per image, averaged over its values."""
    x0, noise = draw()
    alpha, sigma = SCHEDULE.alpha_sigma(T)
    shape = (-1, 1, 1, 1)
    seen = {}

    def network(x, t):
        seen.update(x=x, t=t)
        return 0.5 * x

    losses = DiffusionLoss(SCHEDULE, EPSILON)(network, x0, T, noise)
    x = alpha.reshape(shape) * x0 + sigma.reshape(shape) * noise
    torch.testing.assert_close(seen["x"], x)
    assert torch.equal(seen["t"], T.float())
    torch.testing.assert_close(losses, (0.5 * x - noise).square().mean((1, 2, 3)))


@pytest.mark.parametrize("prediction", [EPSILON, V, X0, MEAN], ids=lambda p: p.name)
def test_perfect_network_has_no_loss(prediction):
    x0, noise = draw()
    alpha, sigma, before = at_times(SCHEDULE, T, x0)
    target = prediction.target(x0, noise, alpha, sigma, before)
    assert DiffusionLoss(SCHEDULE, prediction)(lambda x, t: target, x0, T, noise).max() == 0


@pytest.mark.parametrize("weighting", ["min_snr", "bound"])
def test_weighted_loss_is_the_same_for_every_prediction(weighting):
    """A weight in x0 space does not depend on what the network predicts: the same x0 error costs the same."""
    x0, noise = draw()
    alpha, sigma, before = at_times(SCHEDULE, T, x0)
    x = add_noise(x0, noise, alpha, sigma)
    losses = []
    for prediction in (EPSILON, V, X0, MEAN):
        output = prediction.output(x0 + 0.1, x, alpha, sigma, before)
        losses.append(DiffusionLoss(SCHEDULE, prediction, weighting)(lambda x, t, o=output: o, x0, T, noise))
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], rtol=1e-8, atol=0)


def test_min_snr_weight_is_the_papers():
    """min(SNR, 5) / SNR for epsilon, min(SNR, 5) / (SNR + 1) for v: arXiv:2303.09556, section 3.4."""
    alpha, sigma = SCHEDULE.alpha_sigma(T)
    snr = (alpha / sigma) ** 2
    for prediction, wanted in ((EPSILON, snr.clamp(max=5) / snr), (V, snr.clamp(max=5) / (snr + 1))):
        torch.testing.assert_close(DiffusionLoss(SCHEDULE, prediction, "min_snr")._weight(T), wanted)


def test_bound_weight_is_the_variational_term():
    """Values times the weighted loss is the term of the bound, up to the decoder's constant at t = 0."""
    x0, noise = draw()
    alpha, sigma, _ = at_times(SCHEDULE, T, x0)
    x = add_noise(x0, noise, alpha, sigma)
    loss = DiffusionLoss(SCHEDULE, X0, "bound")(lambda x, t: 0.9 * x, x0, T, noise)
    term = level_term(SCHEDULE, x0, 0.9 * x, T)
    values = x0[0].numel()
    constant = 0.5 * values * math.log(2 * math.pi * SCHEDULE.level(0).sigma ** 2)
    wanted = term - torch.tensor([constant, 0.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(values * loss, wanted, rtol=1e-9, atol=0)


def test_half_precision_latents_are_lifted():
    x0, noise = draw(torch.bfloat16)
    assert DiffusionLoss(SCHEDULE, V)(lambda x, t: x.bfloat16(), x0, T, noise).dtype == torch.float32


def test_gradients_reach_the_network():
    x0, noise = draw(torch.float32)
    scale = torch.ones((), requires_grad=True)
    DiffusionLoss(SCHEDULE, V)(lambda x, t: scale * x, x0, T, noise).mean().backward()
    assert scale.grad is not None and scale.grad.isfinite()


def test_impossible_losses_are_refused():
    with pytest.raises(ConfigError, match="v_prediction"):
        DiffusionLoss(LinearSchedule(zero_terminal_snr=True), EPSILON)
    with pytest.raises(ConfigError, match="min_snr"):
        DiffusionLoss(SCHEDULE, EPSILON, "snr")
