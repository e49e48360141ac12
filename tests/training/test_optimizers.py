"""Every file of training/optimizers: it lowers a loss, and a killed run continues to the same bits; curves."""

import importlib.util
import signal

import pytest
import torch
from processes import assert_equal_states, losses_of, train
from torch import nn

from latent_diffusion.config import RunConfig
from latent_diffusion.errors import ConfigError
from latent_diffusion.registry import names
from latent_diffusion.training.objective import Player
from latent_diffusion.training.optimizer import OPTIMIZERS, build_optimizer, learning_rate, optimizer_settings

PACKAGES = {"prodigy": "prodigyopt", "schedule_free": "schedulefree", "adamw8bit": "bitsandbytes"}
RATES = {"prodigy": 1.0, "muon": 2e-2, "adafactor": 2e-2}


@pytest.fixture(params=names(OPTIMIZERS))
def optimizer(request) -> dict:
    package = PACKAGES.get(request.param)
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"the optional package {package} is not installed")
    return {"name": request.param, "learning_rate": RATES.get(request.param, 1e-2)}


def run_of(optimizer, **values) -> RunConfig:
    defaults = {"output": "unused", "objective": {"name": "toy"}, "data": {}, "steps": 100, "batch_size": 4}
    return RunConfig(**{**defaults, "optimizer": optimizer, **values})


class Net(Player):
    """A convolution, matrices, biases and a norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(128, 64), nn.Linear(64, 5)
        )

    def forward(self, batch, step):
        return self.net(batch)


def test_lowers_the_loss(optimizer):
    player = Net()
    made = build_optimizer(player, optimizer_settings(run_of(optimizer)))
    draw = torch.Generator().manual_seed(1)
    x, wanted = torch.randn(16, 3, 4, 4, generator=draw), torch.randn(16, 5, generator=draw)
    losses: list[float] = []
    for _ in range(120):
        loss = (player(x, 0) - wanted).square().mean()
        loss.backward()
        made.step()
        made.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    made.mode(training=False)
    with torch.no_grad():
        assert float((player(x, 0) - wanted).square().mean()) < 0.6 * losses[0]


def test_a_killed_run_ends_with_the_same_bits(optimizer, tmp_path):
    options = [
        f"optimizer={{name: {optimizer['name']}, learning_rate: {optimizer['learning_rate']}}}",
        "decay=constant",
        "steps=6",
    ]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert train(straight, *options) == 0
    assert train(killed, *options, fault=("within a tensor file", 5)) == -signal.SIGKILL
    assert train(killed, *options) == 0
    assert_equal_states(killed, straight)
    assert losses_of(killed) == losses_of(straight)


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        ({"name": "adam"}, "did you mean 'adamw'"),
        ({"name": "adafactor", "betas": [0.9, 0.99]}, "unknown key `betas`"),
        ({"name": "muon", "momentum": 1.5}, "momentum"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"lerning_rate": 1e-4}, "did you mean 'learning_rate'"),
        ({"betas": [0.9, 1.0]}, "must lie in"),
    ],
)
def test_settings_that_cannot_be_are_refused(optimizer, words):
    with pytest.raises(ConfigError, match=words):
        optimizer_settings(run_of(optimizer))


def test_schedule_free_refuses_a_curve():
    with pytest.raises(ConfigError, match="use constant"):
        optimizer_settings(run_of({"name": "schedule_free"}, decay="cosine"))


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "prodigyopt", None)
    with pytest.raises(ConfigError, match="pip install prodigyopt"):
        build_optimizer(Net(), optimizer_settings(run_of({"name": "prodigy"})))


def test_curves_begin_at_the_peak_and_end_at_zero():
    for decay, middle in (("linear", 0.5), ("cosine", 0.5), ("polynomial", 0.25), ("restarts", 0.5)):
        run = run_of({"learning_rate": 2.0}, decay=decay, steps=110, warmup=10)
        assert learning_rate(10, run) == 2.0 and learning_rate(110, run) == pytest.approx(0.0)
        assert learning_rate(60, run) == pytest.approx(2.0 * middle)
    run = run_of({"learning_rate": 1.0}, decay="restarts", steps=300)
    assert [round(learning_rate(step, run), 3) for step in (0, 50, 99, 100, 150, 200)] == [1, 0.5, 0.0, 1, 0.5, 1]


def test_each_group_keeps_its_share_of_the_learning_rate():
    class Two(Net):
        def learning_rates(self):
            return {"net.0.weight": 1e-3}

    made = build_optimizer(Two(), optimizer_settings(run_of({"learning_rate": 1e-2})))
    shares = {group["share"]: sum(p.numel() for p in group["params"]) for group in made.param_groups}
    assert shares[0.1] == 3 * 8 * 9 and 1.0 in shares
