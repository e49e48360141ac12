"""The training loss (arXiv:2006.11239, eq. 12 and 14; arXiv:2303.09556)."""

import dataclasses
import math

import pytest
import torch

from latent_diffusion.diffusion.bound import level_term
from latent_diffusion.diffusion.denoiser import at_times
from latent_diffusion.diffusion.forward import add_noise
from latent_diffusion.diffusion.level import Level
from latent_diffusion.diffusion.loss import WEIGHTINGS, DiffusionLoss
from latent_diffusion.diffusion.prediction import EPSILON, FLOW, MEAN, X0, V
from latent_diffusion.errors import ConfigError
from latent_diffusion.schedules.linear import LinearSchedule
from latent_diffusion.schedules.rectified_flow import RectifiedFlow

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


@pytest.mark.parametrize("weighting", [name for name in WEIGHTINGS if name != "simple"])
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
        torch.testing.assert_close(DiffusionLoss(SCHEDULE, prediction, "min_snr").weight(T), wanted)


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


# Weight of the squared error of the network's output at signal-to-noise ratio s, as each paper gives it for one
# prediction and, by x = alpha x0 + sigma noise, for the others: e = epsilon, v, x = x0, f = flow on alpha = 1 - sigma.
FORMULAS = {
    ("simple", "e"): lambda s: 1.0,
    ("simple", "v"): lambda s: 1.0,
    ("simple", "x"): lambda s: 1.0,
    ("simple", "f"): lambda s: 1.0,
    ("min_snr", "e"): lambda s: min(s, 5.0) / s,
    ("min_snr", "v"): lambda s: min(s, 5.0) / (s + 1.0),
    ("min_snr", "x"): lambda s: min(s, 5.0),
    ("min_snr", "f"): lambda s: min(s, 5.0) / (1.0 + s**0.5) ** 2,
    ("soft_min_snr", "e"): lambda s: 5.0 / (s + 5.0),
    ("soft_min_snr", "v"): lambda s: 5.0 * s / ((s + 5.0) * (s + 1.0)),
    ("soft_min_snr", "x"): lambda s: 5.0 * s / (s + 5.0),
    ("soft_min_snr", "f"): lambda s: 5.0 * s / ((s + 5.0) * (1.0 + s**0.5) ** 2),
    ("p2", "e"): lambda s: 1.0 / (1.0 + s),
    ("p2", "v"): lambda s: s / (1.0 + s) ** 2,
    ("p2", "x"): lambda s: s / (1.0 + s),
    ("p2", "f"): lambda s: s / ((1.0 + s) * (1.0 + s**0.5) ** 2),
    ("debiased", "e"): lambda s: s**-0.5,
    ("debiased", "v"): lambda s: s**0.5 / (s + 1.0),
    ("debiased", "x"): lambda s: s**0.5,
    ("debiased", "f"): lambda s: s**0.5 / (1.0 + s**0.5) ** 2,
}
# The same where the ratio is 0 (pure noise) and infinite (no noise): the limits, by hand.
AT_ZERO = {"simple": 1.0, "min_snr": 0.0, "soft_min_snr": 0.0, "p2": 0.0, "debiased": 0.0}
AT_INFINITY = {
    **{(name, "e"): 0.0 for name in AT_ZERO} | {("simple", "e"): 1.0},
    **{(name, "v"): 0.0 for name in AT_ZERO} | {("simple", "v"): 1.0},
    **{(name, "f"): 0.0 for name in AT_ZERO} | {("simple", "f"): 1.0},
    **{("simple", "x"): 1.0, ("min_snr", "x"): 5.0, ("soft_min_snr", "x"): 5.0, ("p2", "x"): 1.0},
    ("debiased", "x"): math.inf,
}
PREDICTIONS = {"e": EPSILON, "v": V, "x": X0, "f": FLOW}


@dataclasses.dataclass(frozen=True)
class OneLevel:
    """A law that has the same signal-to-noise ratio at every time."""

    snr: float
    straight: bool  # alpha = 1 - sigma in place of alpha^2 + sigma^2 = 1
    num_train_timesteps: int = 10

    def pair(self):
        if self.snr == math.inf:
            return 1.0, 0.0
        ratio = math.sqrt(self.snr)
        length = 1.0 + ratio if self.straight else math.hypot(1.0, ratio)
        return ratio / length, 1.0 / length

    def alpha_sigma(self, t):
        return tuple(torch.full(t.shape, value, dtype=torch.float64) for value in self.pair())

    def level(self, t, index=0):
        return Level(index, t, 1.0, 1.0, None)  # only its alpha is looked at: epsilon is not refused here


@pytest.mark.parametrize(("weighting", "kind"), list(FORMULAS))
def test_every_weight_is_its_formula(weighting, kind):
    for snr in (1e-6, 0.3, 1.0, 4.0, 30.0, 1e6):
        loss = DiffusionLoss(OneLevel(snr, kind == "f"), PREDICTIONS[kind], weighting)
        assert float(loss.weight(torch.tensor([3]))[0]) == pytest.approx(FORMULAS[weighting, kind](snr), rel=1e-9)


@pytest.mark.parametrize(("weighting", "kind"), list(FORMULAS))
def test_every_weight_at_the_ends_of_the_law(weighting, kind):
    """Pure noise (epsilon has no meaning there) and no noise: the limit of the formula, never NaN."""
    clean = DiffusionLoss(OneLevel(math.inf, kind == "f"), PREDICTIONS[kind], weighting).weight(torch.tensor([3]))
    wanted = AT_INFINITY[weighting, kind]
    assert float(clean[0]) == pytest.approx(wanted, rel=1e-9, abs=1e-9) or (wanted == math.inf and clean[0] > 1e14)
    if kind != "e":
        noisy = DiffusionLoss(OneLevel(0.0, kind == "f"), PREDICTIONS[kind], weighting).weight(torch.tensor([3]))
        assert float(noisy[0]) == AT_ZERO[weighting]


def test_huber_is_the_square_for_small_errors_and_linear_for_large_ones():
    x0, noise = draw()
    for size, wanted in ((1e-4, 1e-8), (100.0, 2 * 0.1 * (100.0 - 0.1))):
        loss = DiffusionLoss(SCHEDULE, EPSILON, huber=0.1)(lambda x, t, s=size: noise + s, x0, T, noise)
        torch.testing.assert_close(loss, torch.full((len(T),), wanted, dtype=loss.dtype), rtol=1e-4, atol=0)


def test_perturbed_noise_reaches_the_input_and_not_the_target():
    """arXiv:2301.11706, eq. 5: the network sees other noise than it is asked for."""
    x0, noise = draw()
    alpha, sigma, _ = at_times(SCHEDULE, T, x0)
    seen = []
    loss = DiffusionLoss(SCHEDULE, EPSILON)(lambda x, t: seen.append(x) or noise, x0, T, noise, noise + 1.0)
    assert loss.abs().max() == 0
    torch.testing.assert_close(seen[0], alpha * x0 + sigma * (noise + 1.0))


REFUSED = [
    ({"weighting": "simple", "gamma": 5.0}, "has no gamma"),
    ({"weighting": "min_snr", "k": 1.0}, "has no k"),
    ({"weighting": "debiased", "gamma": 1.0}, "has no gamma"),
    ({"weighting": "bound", "gamma": 1.0}, "has no gamma"),
    ({"weighting": "bound", "huber": 0.1}, "squared error"),
    ({"weighting": "min_snr", "gamma": -1.0}, "above 0"),
    ({"huber": 0.0}, "above 0"),
    ({"weighting": "min-snr"}, "did you mean 'min_snr'"),
]


@pytest.mark.parametrize(("settings", "words"), REFUSED)
def test_what_cannot_go_together_is_refused_with_the_reason(settings, words):
    with pytest.raises(ConfigError, match=words):
        DiffusionLoss(SCHEDULE, V, **settings)


def test_epsilon_is_refused_where_a_level_is_pure_noise():
    for schedule in (LinearSchedule(zero_terminal_snr=True), RectifiedFlow()):
        with pytest.raises(ConfigError, match="v_prediction"):
            DiffusionLoss(schedule, EPSILON)
