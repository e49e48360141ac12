"""Weights in bfloat16 that are rounded at random, and updates in the backward pass: laws, equal bits, refusals."""

from typing import Any

import pytest
import torch
from processes import assert_equal_states, losses_of
from torch import nn

from latent_diffusion.errors import ConfigError
from latent_diffusion.training.optimizer import build_optimizer
from latent_diffusion.training.optimizers.adamw import AdamW
from latent_diffusion.training.run import build_objective, train
from latent_diffusion.training.state.launch import build_accelerator
from latent_diffusion.training.trainer import Trainer
from latent_diffusion.training.updates.rounding import rounded, rounding_generator
from latent_diffusion.training.updates.updates import check_update_in_backward

CAPTIONED = {"captions": ["text"]}
CPU = torch.device("cpu")
BFLOAT16 = {"precision": "bfloat16", "memory": {"weights": "bfloat16"}}
IN_BACKWARD = {"clip_norm": None, "memory": {"update_in_backward": True}}


def test_rounding_at_random_is_without_bias_and_goes_to_a_neighbour():
    x = torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 3
    draw = rounding_generator(0, "w", 0, CPU)
    made = torch.stack([rounded(x, draw).float() for _ in range(400)])
    towards = (x.view(torch.int32) & -(2**16)).view(torch.float32)
    away = ((x.view(torch.int32) & -(2**16)) + 2**16).view(torch.float32)
    assert bool(((made == towards) | (made == away)).all())
    share = (x - towards) / (away - towards)
    found = (made == away).float().mean(0)
    error = (found - share) / (share * (1 - share) / 400).sqrt().clamp_min(1e-2)
    assert abs(float(error.mean())) < 4 / 4000**0.5 and 0.9 < float(error.std()) < 1.1


def test_numbers_of_bfloat16_and_none_stay_and_the_key_alone_decides():
    exact = torch.tensor([0.0, -0.0, 1.0, -2.5, 3e38, 1e-38, torch.inf, -torch.inf]).bfloat16()
    assert torch.equal(rounded(exact.float(), rounding_generator(0, "w", 3, CPU)), exact)
    assert rounded(torch.tensor([torch.nan]), rounding_generator(0, "w", 3, CPU)).isnan().all()
    x = torch.randn(1000)
    first, again, later, other = (
        rounded(x, rounding_generator(seed, name, update, CPU))
        for seed, name, update in ((0, "w", 3), (0, "w", 3), (0, "w", 4), (0, "v", 3))
    )
    assert torch.equal(first, again) and not torch.equal(first, later) and not torch.equal(first, other)


def test_updates_that_are_smaller_than_half_a_step_add_up():
    """A weight of 1 with steps of 1/10,000: to the nearest it would stay at 1 for ever."""

    class Player(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(200, 50, dtype=torch.bfloat16))

        def learning_rates(self) -> dict[str, float]:
            return {}

    player: Any = Player()
    optimizer = build_optimizer(player, AdamW(learning_rate=1e-4, weight_decay=0.0))
    for update in range(100):
        player.w.grad = torch.ones_like(player.w)
        optimizer.step(update)
    state = optimizer.state_of(player.w)
    assert player.w.dtype == torch.bfloat16 and state["exp_avg"].dtype == torch.float32
    assert float(player.w.detach().float().mean()) == pytest.approx(0.99, abs=2e-4)
    assert bool((torch.tensor(1e-4).bfloat16() + torch.ones(1).bfloat16() == 1).all())


def fitted(run) -> Any:
    objective: Any = build_objective(run)
    trainer = Trainer(objective, run, build_accelerator())
    trainer.fit()
    return trainer


@pytest.mark.parametrize(
    ("optimizer", "more"),
    [("adamw", {}), ("muon", {}), ("adamw", BFLOAT16), ("adafactor", BFLOAT16)],
    ids=lambda value: value if isinstance(value, str) else value.get("precision", "float32"),
)
def test_updates_in_the_backward_pass_give_the_bits_of_updates_after_it(tiny_objective, make_run, optimizer, more):
    values = {"optimizer": {"name": optimizer, "learning_rate": 1e-3}, "gradient_checkpointing": True, "steps": 2}
    after = fitted(make_run(tiny_objective("unet"), CAPTIONED, clip_norm=None, **(values | more)))
    memory = more.get("memory", {}) | IN_BACKWARD["memory"]
    within = fitted(make_run(tiny_objective("unet"), CAPTIONED, clip_norm=None, **(values | more | {"memory": memory})))
    wanted, found = (trainer.players["unet"].state_dict() for trainer in (after, within))
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []
    assert all(p.grad is None for p in within.trainable["unet"].values())


def test_in_the_backward_pass_few_gradients_are_there_at_a_time(tiny_objective, make_run):
    run = make_run(tiny_objective("unet"), CAPTIONED, steps=1, **IN_BACKWARD)
    trainer = Trainer(build_objective(run), run, build_accelerator())
    weights, most = trainer.trainable["unet"], [0]

    def count(_: torch.Tensor) -> None:
        most[0] = max(most[0], sum(p.grad is not None for p in weights.values()))

    for weight in weights.values():
        weight.register_post_accumulate_grad_hook(count)
    trainer.fit()
    assert len(weights) > 200 and most[0] <= 2


def test_weights_in_bfloat16_follow_those_in_float32(tiny_objective, make_run):
    """Linear layers and convolutions are stored in 16 bits and stay within their rounding."""
    wide, narrow = (
        fitted(make_run(tiny_objective("unet"), CAPTIONED, steps=3, **values)).players["unet"].state_dict()
        for values in ({"precision": "bfloat16"}, BFLOAT16)
    )
    large = [name for name, weight in narrow.items() if weight.ndim > 1]
    stored = [name for name in large if narrow[name].dtype == torch.bfloat16]
    assert len(stored) == len(large) - 2
    of_all = torch.cat([wide[name].flatten() for name in stored])
    moved = torch.cat([narrow[name].float().flatten() for name in stored]) - of_all
    assert float(moved.square().mean().sqrt()) < 8e-3 * float(of_all.square().mean().sqrt())


@pytest.mark.parametrize("more", [BFLOAT16, IN_BACKWARD], ids=["bfloat16", "in backward"])
def test_a_run_that_continues_has_the_bits_of_one_that_does_not(tiny_objective, make_run, tmp_path, more):
    whole, parts = tmp_path / "whole" / "run", tmp_path / "parts" / "run"
    values = {"checkpoint": {"every": 2}, "log_every": 1, **more}
    assert train(make_run(tiny_objective("unet"), CAPTIONED, output=str(whole), steps=4, **values)) == 0
    for steps in (2, 4):
        assert train(make_run(tiny_objective("unet"), CAPTIONED, output=str(parts), steps=steps, **values)) == 0
    assert_equal_states(whole, parts)
    assert losses_of(whole) == losses_of(parts)


def test_a_gradient_that_is_not_finite_ends_the_run_before_a_checkpoint(tiny_objective, make_run, tmp_path):
    from latent_diffusion.errors import DivergedError

    run = make_run(tiny_objective("unet"), CAPTIONED, optimizer={"learning_rate": 1e30}, steps=9, **IN_BACKWARD)
    with pytest.raises(DivergedError, match="no checkpoint was changed by it"):
        train(run)
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))


def test_several_processes_cannot_update_in_the_backward_pass(tiny_objective, make_run):
    run = make_run(tiny_objective("unet"), **IN_BACKWARD)
    check_update_in_backward(run, 1)
    with pytest.raises(ConfigError, match="2 processes: they add up their gradients"):
        check_update_in_backward(run, 2)
