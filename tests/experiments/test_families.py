"""The five families of docs/science/families.md, at small sizes: their densities, bounds, players and training."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from experiments.science.families import diffusion as diffusion_file
from experiments.science.families.blocks import Encoder, fold, unfold
from experiments.science.families.diffusion import Diffusion, empty, even_times
from experiments.science.families.family import Draws, bits, spread, to_values
from experiments.science.families.flow import Flow
from experiments.science.families.gan import GAMMA, GAN, LAZY
from experiments.science.families.hierarchical_vae import HierarchicalVAE
from experiments.science.families.training import Training
from experiments.science.families.vae import VAE, kl, log_likelihood
from experiments.science.five_families import reference
from latent_diffusion.diffusion.bound import bound_all_levels
from latent_diffusion.schedules.cosine import CosineSchedule

WIDTHS = (8, 8, 8)
SMALL = {
    "vae": lambda: HierarchicalVAE({}, WIDTHS),
    "hierarchical": lambda: HierarchicalVAE({0: 2, 2: 1}, WIDTHS),
    "gan": lambda: GAN(WIDTHS),
    "flow": lambda: Flow((8, 8), 1),
    "diffusion": lambda: Diffusion(WIDTHS),
}


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


def shaken(network):
    """The network with weights that are nowhere zero, so that no part is the identity."""
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return network


def test_the_families_have_the_same_number_of_weights():
    with torch.device("meta"):
        families = VAE(), HierarchicalVAE(), GAN(), Diffusion()
    counts = [sum(weight.numel() for weight in family.parameters()) for family in (*families, Flow())]
    assert max(counts) <= 1.1 * min(counts)


def test_values_survive_their_spread_and_pictures_their_fold():
    values = torch.arange(32).reshape(1, 1, 4, 8).expand(1, 3, 4, 8)
    for noise in (torch.zeros(values.shape), torch.full(values.shape, 0.999)):
        assert torch.equal(to_values(spread(values, noise)), values.to(torch.uint8))
    x = torch.randn(2, 3, 32, 32)
    assert fold(x).shape == (2, 12, 16, 16) and torch.equal(unfold(fold(x)), x)


def test_pictures_of_equal_chances_have_five_bits_a_number():
    nats = torch.full((1,), 3 * 32 * 32 * math.log(2.0))  # the density of [-1, 1) is 1/2
    assert bits(nats).item() == pytest.approx(5.0)


# --- flow ---


def test_the_flow_s_inverse_is_exact():
    flow = shaken(Flow((8, 8, 8), 1)).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    noise, _ = flow.to_noise(x)
    assert sum(part[0].numel() for part in noise) == x[0].numel()
    torch.testing.assert_close(flow.to_pictures(noise), x, rtol=0, atol=1e-9)


def test_the_flow_s_determinant_is_that_of_its_slopes():
    flow = shaken(Flow((4, 4), 2, channels=4)).double()
    x = torch.randn(1, 4, 2, 2, dtype=torch.float64)

    def flat(y):
        return torch.cat([part.flatten() for part in flow.forward_folded(y.reshape(x.shape))[0]])

    slopes = torch.autograd.functional.jacobian(flat, x.flatten())
    _, total = flow.forward_folded(x)
    assert total.item() == pytest.approx(torch.linalg.slogdet(slopes)[1].item(), abs=1e-9)


def test_the_flow_has_the_density_of_gaussian_data():
    flow = Flow((8,), 1)  # couplings begin as the identity
    mean, std = torch.randn(12), torch.rand(12) + 0.2
    with torch.no_grad():
        first, mixing, _, last = flow.levels[0]
        first.log_scale.copy_(-std.log().reshape(1, 12, 1, 1))
        first.shift.copy_((-mean / std).reshape(1, 12, 1, 1))
        assert not torch.allclose(mixing.weight, torch.eye(12)) and last.log_scale.abs().max() == 0
        folded = mean.reshape(12, 1, 1) + std.reshape(12, 1, 1) * torch.randn(3, 12, 16, 16)
        exact = -torch.distributions.Normal(mean.reshape(12, 1, 1), std.reshape(12, 1, 1)).log_prob(folded)
        found = flow.bits_per_dimension(unfold(folded), Draws(0, 0, 0))
    torch.testing.assert_close(found, exact.flatten(1).sum(1) / (3072 * math.log(2)) + 4, rtol=1e-5, atol=1e-5)


# --- VAE ---


class Linear(nn.Module):
    """x = z a + noise, z of 2 numbers, x a picture; its exact posterior as encoder, or a worse one."""

    def __init__(self, slopes, log_std, worse):
        super().__init__()
        self.slopes, self.log_std, self.worse = slopes, log_std, worse

    def forward(self, given):
        precision = torch.eye(2, dtype=given.dtype) + self.slopes @ self.slopes.T / math.exp(2 * self.log_std)
        if given.shape[1] == 2:  # z
            mean = (given.flatten(1) @ self.slopes).reshape(-1, 3, 32, 32)
            return torch.cat([mean, torch.full_like(mean, self.log_std)], 1)
        mean = given.flatten(1) @ self.slopes.T / math.exp(2 * self.log_std) @ torch.linalg.inv(precision)
        log_std = -0.5 * precision.diagonal().log().expand_as(mean) + self.worse
        return torch.cat([mean, log_std], 1)[..., None, None]


@pytest.mark.parametrize("worse", [0.0, 0.5])
def test_the_vae_s_bound_of_linear_gaussian_data(worse):
    raw = 0.3  # the decoder's output; the VAE keeps log-deviations above the least
    slopes = torch.zeros(2, 3072, dtype=torch.float64)  # orthogonal, so that the posterior has independent entries
    slopes[0, :1500], slopes[1, 1500:] = torch.randn(1500).double() / 40, torch.randn(1572).double() / 40
    least = math.log(2 / 32 / math.sqrt(12))
    log_std = least + math.log1p(math.exp(raw - least))
    decoder, encoder = Linear(slopes, raw, 0.0), Linear(slopes, log_std, worse)
    x = torch.randn(4, 2, dtype=torch.float64) @ slopes + math.exp(log_std) * torch.randn(4, 3072).double()
    unit = slopes / slopes.norm(dim=1, keepdim=True)
    inside = x @ unit.T
    of_plane = torch.distributions.Normal(0.0, (math.exp(2 * log_std) + slopes.square().sum(1)).sqrt()).log_prob(inside)
    outside = (x - inside @ unit).square().sum(1) / math.exp(2 * log_std)
    exact = of_plane.sum(1) - 0.5 * (outside + 3070 * (2 * log_std + math.log(2 * math.pi)))
    vae = VAE(encoder, decoder)
    draws = 100
    bound = torch.stack([vae.bound(x.reshape(4, 3, 32, 32), Draws(0, 0, 4 * k)) for k in range(draws)])
    gap = bound + exact  # KL of the encoder's posterior from the exact one
    closed = 2 * (0.5 * (math.exp(2 * worse) - 1) - worse)
    assert (gap.mean(0) - closed).abs().max() < 4 * max(1e-9, gap.std(0).max().item() / draws**0.5)
    assert (worse == 0.0) == (closed == 0.0)


def test_kl_and_likelihood_are_those_of_torch():
    mean, log_std, other, other_log_std = torch.randn(4, 3, 5).unbind(0)
    normal = torch.distributions.Normal
    exact = torch.distributions.kl_divergence(normal(mean, log_std.exp()), normal(other, other_log_std.exp()))
    torch.testing.assert_close(kl(mean, log_std, other, other_log_std), exact.sum(1))
    x = torch.randn(3, 5)
    torch.testing.assert_close(log_likelihood(x, mean, log_std), normal(mean, log_std.exp()).log_prob(x).sum(1))


def test_a_ladder_without_rungs_is_a_vae():
    ladder = shaken(HierarchicalVAE({}, WIDTHS))
    vae = VAE(ladder.encoder, ladder.decoder)
    x, draws = torch.rand(2, 3, 32, 32) * 2 - 1, Draws(0, 0, 0)
    torch.testing.assert_close(ladder.bound(x, draws), vae.bound(x, draws))
    torch.testing.assert_close(ladder.sample(3, 1), vae.sample(3, 1))


def test_rungs_begin_without_information_and_then_add_their_own_kl():
    ladder = HierarchicalVAE({0: 2, 2: 1}, WIDTHS)
    seen = ladder.encoder.features(torch.rand(2, 3, 32, 32))
    z, draws = torch.randn(2, 64, 1, 1), Draws(0, 0, 0)
    assert ladder.decode(z, seen, draws.normal)[2].abs().max() == 0
    shaken(ladder)
    assert (ladder.decode(z, seen, draws.normal)[2] > 0).all()
    assert ladder.decode(z, None, draws.normal)[2].abs().max() < 1e-5


# --- GAN ---


def test_a_player_of_the_gan_changes_its_own_network_alone():
    training = Training(SMALL["gan"], torch.randint(0, 32, (8, 3, 32, 32), dtype=torch.uint8), batch=2)
    training.updates = 1  # one without the slope, which the next test has
    before = {name: weight.detach().clone() for name, weight in training.family.named_parameters()}
    kept = training.optimizers.pop("generator")
    training.update()
    changed = {n.split(".")[0] for n, w in training.family.named_parameters() if not torch.equal(w, before[n])}
    assert changed == {"critic"}
    before = {name: weight.detach().clone() for name, weight in training.family.named_parameters()}
    training.optimizers = {"generator": kept}
    training.update()
    changed = {n.split(".")[0] for n, w in training.family.named_parameters() if not torch.equal(w, before[n])}
    assert changed == {"generator"}


def test_the_critic_s_slope_is_weighed_as_written():
    gan = shaken(GAN(WIDTHS)).double()
    x, drawn = torch.randn(2, 2, 3, 32, 32, dtype=torch.float64)
    plain, sloped = gan.critic_loss(x, drawn, False), gan.critic_loss(x, drawn, True)
    step = 1e-6
    square = torch.zeros((), dtype=torch.float64)
    for row in range(2):
        one = x[row : row + 1].clone().requires_grad_()
        (slope,) = torch.autograd.grad(gan.critic(one).sum(), one)
        rise = gan.critic(one + step * slope) - gan.critic(one - step * slope)  # 2 step |slope|^2
        square += rise.item() / (2 * step)
    assert (sloped - plain).item() == pytest.approx(LAZY * GAMMA / 2 * (square / 2).item(), rel=1e-4)


def test_gans_have_no_likelihood():
    assert GAN(WIDTHS).bits_per_dimension(torch.zeros(1, 3, 32, 32), Draws(0, 0, 0)) is None


# --- diffusion ---


def test_times_of_a_batch_cover_every_level_evenly():
    x = torch.zeros(8, 1)
    times = torch.stack([even_times(x, Draws(0, k, 8 * k), 1000) for k in range(200)])
    assert (times.sort(1).values // 125 == torch.arange(8)).all(dim=1).float().mean() > 0.9
    assert abs(times.float().mean() - 499.5) < 5


# --- training, for all ---


@pytest.mark.parametrize("name", SMALL)
def test_a_resumed_training_ends_bit_equal(tmp_path, name):
    values = torch.randint(0, 32, (6, 3, 32, 32), dtype=torch.uint8)

    def begin():
        return Training(SMALL[name], values, seed=3, batch=2)

    whole, first, second = begin(), begin(), begin()
    for _ in range(3):
        whole.update()
    for _ in range(2):
        first.update()
    first.save(tmp_path / "checkpoint.safetensors")
    second.load(tmp_path / "checkpoint.safetensors")
    second.update()
    assert second.updates == 3 and second.progress.losses == whole.progress.losses
    for (key, a), (_, b) in zip(whole.family.state_dict().items(), second.family.state_dict().items(), strict=True):
        assert torch.equal(a, b), key
    assert all(torch.equal(whole.average[key], second.average[key]) for key in whole.average)


@pytest.mark.parametrize("name", SMALL)
def test_drawings_are_pictures_that_a_seed_repeats(name):
    family = SMALL[name]()
    with torch.no_grad():
        options = {"steps": 2} if name == "diffusion" else {}
        first, more = family.sample(2, 5, **options), family.sample(3, 5, **options)
        other = family.sample(2, 6, **options)
    assert first.shape == (2, 3, 32, 32) and first.isfinite().all()
    torch.testing.assert_close(first, more[:2], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(first, other, atol=1e-3)


def test_the_encoder_halves_its_way_down():
    assert [x.shape[2:] for x in Encoder(WIDTHS, 1).features(torch.zeros(1, 3, 32, 32))] == [(16, 16), (8, 8), (4, 4)]


def test_the_bound_by_some_terms_has_every_term_once(monkeypatch):
    monkeypatch.setattr(diffusion_file, "SINGLE", 4)
    monkeypatch.setattr(diffusion_file, "STRATA", 3)
    diffusion = shaken(Diffusion(WIDTHS))
    diffusion.schedule = CosineSchedule(7)
    x, draws, numbers = torch.rand(2, 3, 32, 32) * 2 - 1, Draws(0, 0, 0), iter(range(7))
    with torch.no_grad():
        some = diffusion.bits_per_dimension(x, draws)
        denoise = diffusion.denoiser().bind_times(empty(2))
        noise = draws.normal
        every = bound_all_levels(
            denoise, diffusion.schedule, fold(x), lambda: noise(f"bound noise {next(numbers)}", fold(x))
        )
    torch.testing.assert_close(some, bits(every))


def test_a_run_with_more_drawings_has_a_reference_of_its_own():
    run = SimpleNamespace(found={}, real=torch.randn(40, 3), held_out=None, judge=lambda values: torch.randn(6, 3))
    for pictures in (5, 20):
        run.asked = SimpleNamespace(pictures=pictures)
        reference(run)
    few, many = (values["precision"] for values in run.found.values())
    assert few != many
