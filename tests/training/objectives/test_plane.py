"""Processes on points in the plane: one update against the formula, and runs that go on bit for bit."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from latent_diffusion.checkpoint.files.safetensors_file import read_tensors
from latent_diffusion.config import RunConfig
from latent_diffusion.errors import ConfigError
from latent_diffusion.training.losses.keyed_times import KeyedTimes, TimesSettings
from latent_diffusion.training.losses.points.denoising_gan import (
    DenoisingDiscriminator,
    DenoisingGenerator,
    GanSettings,
    LargeSteps,
)
from latent_diffusion.training.losses.points.latent_score import (
    END,
    START,
    LatentModel,
    PriorPlayer,
    alpha_sigma,
    ends_term,
)
from latent_diffusion.training.objectives.plane import PlanePoints, PlaneSettings, load_plane
from latent_diffusion.training.run import build_objective, train

PROCESSES = ("diffusion", "damped", "gan", "latent")


@pytest.fixture
def make_run(tmp_path):
    """Return a function that makes a small run of a process."""

    def make(process: str, folder: str = "run", **values: Any) -> RunConfig:
        section = {"name": "plane", "process": process, "width": 16, "layers": 1}
        defaults = {"output": str(tmp_path / folder), "steps": 4, "batch_size": 8, "threads": 1, "precision": "float32"}
        return RunConfig.model_validate({**defaults, "objective": section, "data": {}, **values})

    return make


@pytest.mark.parametrize("process", PROCESSES)
def test_a_run_that_goes_on_ends_bit_equal(process, make_run):
    values = {"ema": {"decay": 0.9}, "checkpoint": {"every": 2}}
    whole, parted = make_run(process, "whole", **values), make_run(process, "parted", **values)
    assert train(whole) == 0
    assert train(parted.model_copy(update={"steps": 2})) == 0
    assert train(parted.model_copy(update={"allow_drift": True})) == 0
    one, two = (read_tensors(run.output / "model" / "model.safetensors") for run in (whole, parted))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    network, settings, data = load_plane(whole.output / "model")
    assert (settings.process, data.side) == (process, 5) and not network.training


def test_points_are_those_of_the_grid(make_run):
    objective: Any = build_objective(make_run("diffusion"))
    (points,) = objective.batches([range(2000)])
    off = points.values[:, None] - objective.centres.float()
    nearest = off.norm(dim=2).min(1)
    assert torch.bincount(nearest.indices, minlength=25).min() > 40  # 80 are expected
    assert abs(off[torch.arange(2000), nearest.indices].std() - 0.05) < 3 * 0.05 / 8000**0.5
    again = next(objective.batches([[7]]))
    assert torch.equal(again.values[0], points.values[7])


class Line(nn.Module):
    """A discriminator whose gradient by x_s is its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.3, -0.8], dtype=torch.float64))

    def forward(self, before, after, t):
        return before @ self.weight + 0.5 * after.sum(1) + t


def test_one_update_of_both_players_is_the_papers():
    settings = GanSettings(steps=4, latents=2, r1=0.2, r1_every=3)
    process, judge = LargeSteps(settings, seed=5), Line()

    def generate(x, z, t):
        return 0.5 * x + 0.1 * z

    values = torch.randn(12, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batch = SimpleNamespace(sample=tuple(range(12)), values=values)
    player = DenoisingDiscriminator(judge, generate, process, settings)
    pair = process.pair(values, batch.sample, "discriminator")
    made = process.undone(generate(pair.after, pair.z, pair.t), pair)
    plain = F.softplus(-judge(pair.before, pair.after, pair.t)) + F.softplus(judge(made, pair.after, pair.t))
    penalty = 0.5 * 0.2 * 3 * judge.weight.square().sum()
    torch.testing.assert_close(player(batch, 1).total, plain)
    torch.testing.assert_close(player(batch, 3).total, plain + penalty)
    (slope,) = torch.autograd.grad((player(batch, 3).total - player(batch, 1).total).sum(), judge.weight)
    torch.testing.assert_close(slope, 12 * 0.2 * 3 * judge.weight.detach())
    pair = process.pair(values, batch.sample, "generator")
    made = process.undone(0.5 * pair.after + 0.1 * pair.z, pair)
    wanted = F.softplus(-judge(made, pair.after, pair.t))
    network = nn.Module()
    network.forward = generate
    torch.testing.assert_close(DenoisingGenerator(network, judge, process)(batch, 0).total, wanted)


def latent_run(make_run, folder: str, stage: str, init: RunConfig | None = None) -> RunConfig:
    section = {"name": "plane", "process": "latent", "width": 16, "layers": 1, "latent": {"stage": stage}}
    if init is not None:
        section["latent"]["init"] = str(init.output / "model")
    return make_run("latent", folder, objective=section, optimizer={"learning_rate": 1e-2})


def test_the_stages_of_a_latent_model_train_what_they_name(make_run):
    vae = latent_run(make_run, "vae", "vae")
    prior, joint = latent_run(make_run, "prior", "prior", vae), latent_run(make_run, "joint", "joint", vae)
    tensors = {}
    for run in (vae, prior, joint):
        assert train(run) == 0
        tensors[run.output.name] = read_tensors(run.output / "model" / "model.safetensors")
    moved = {
        stage: {name.split(".")[0] for name in tensors["vae"] if not torch.equal(tensors["vae"][name], after[name])}
        for stage, after in tensors.items()
    }
    assert moved["prior"] == {"prior", "mix"}
    assert moved["joint"] == {"prior", "mix", "encoder", "decoder", "log_scale"}
    with pytest.raises(ConfigError, match=r"objective\.latent\.init: .* width and layers \('latent', 16, 1\)"):
        changed = {**joint.objective, "width": 8}
        build_objective(joint.model_copy(update={"objective": changed}))


def test_without_its_network_the_prior_is_the_normal_law():
    """With m = 0 the bound of a latent model is that of its VAE, up to the ends of the noise levels."""
    torch.manual_seed(0)
    model, count = LatentModel(2, 16, 1, 1e-9).double(), 20_000
    draws = torch.randn(count, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x, noise, u = draws[:, :2], draws[:, 2:], (torch.arange(count, dtype=torch.float64) + 0.5) / count
    with torch.no_grad():
        off = model.negative_bound(x, noise, u) - model.negative_bound(x, noise, None)
    assert abs(off.mean()) < 3 * off.std() / count**0.5 and off.std() / count**0.5 < 0.15


def test_the_bound_of_a_gaussian_prior_is_its_own_log_density():
    """An exact estimate of the noise in latents N(.3, .5^2) makes L(z) of them their entropy."""
    mean, deviation, count = 0.3, 0.5, 40_000
    model = LatentModel(1, 16, 1, 0.5).double()

    def exact(z, u):
        alpha, sigma = alpha_sigma(u, z)
        return sigma * (z - alpha * mean) / ((alpha * deviation) ** 2 + sigma**2)

    model.noise = exact
    draws = torch.randn(count, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    z, noise = mean + deviation * draws[:, :1], draws[:, 1:]
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    bound = ends_term(z) + (END - START) / 2 * model.noise_error(z, noise, u)
    entropy = 0.5 * math.log(2 * math.pi * math.e * deviation**2)
    spread = (bound - 0.5 * ((z - mean) / deviation).square()[:, 0]).std() / count**0.5
    assert abs(bound.mean() - entropy) < 3 * spread + 1e-3 and spread < 0.05


def test_the_ends_are_a_kl_and_the_density_at_the_least_noisy_level():
    """At latents so far out that the noisiest level still shows them."""
    z = torch.tensor([[300.0, -200.0]], dtype=torch.float64)
    variance, normal = 1 / (1 + math.exp(-END)), torch.distributions.Normal
    noisiest = normal(z * (1 - variance) ** 0.5, torch.full_like(z, variance**0.5))
    kl = torch.distributions.kl_divergence(noisiest, normal(torch.zeros_like(z), torch.ones_like(z))).sum(1)
    least = normal(z, torch.full_like(z, math.exp(START / 2))).entropy().sum(1)
    assert kl > 1
    torch.testing.assert_close(ends_term(z), kl + least)


def test_the_prior_leaves_the_encoder_alone():
    torch.manual_seed(0)
    model = LatentModel(2, 16, 1, 0.5)
    batch = SimpleNamespace(sample=tuple(range(8)), values=torch.randn(8, 2))
    PriorPlayer(model, KeyedTimes(TimesSettings(), torch.ones(1), 0, 8), 0)(batch, 0).total.sum().backward()
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None} == {"prior", "mix"}


def test_what_has_no_meaning_is_refused(make_run):
    with pytest.raises(ValidationError, match="is for the process gan, and process is damped"):
        PlaneSettings.model_validate({"process": "damped", "gan": {}})
    with pytest.raises(ConfigError, match="gradient_checkpointing"):
        build_objective(make_run("damped", gradient_checkpointing=True))
    assert PlanePoints(side=2, distance=1.0).centres().tolist() == [[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]]
