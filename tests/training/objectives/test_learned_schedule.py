"""The schedule's objective: its loss, and a result that a sampler visits."""

import json
from typing import Any

import pytest
import torch

from latent_diffusion.diffusion.denoiser import at_times
from latent_diffusion.diffusion.learned_schedule import times_at
from latent_diffusion.errors import ConfigError
from latent_diffusion.training.run import build_objective, train
from latent_diffusion.training.state.launch import build_accelerator
from latent_diffusion.training.trainer import Trainer


def test_the_loss_is_the_square_of_the_bounds_estimate(tiny_folder, make_run):
    objective = {"name": "learned_schedule", "init": str(tiny_folder)}
    run = make_run(objective, {"captions": ["text"]}, precision="float64", fast=False)
    torch.manual_seed(0)
    made: Any = build_objective(run)
    Trainer(made, run, build_accelerator())
    player, batch = made.player, next(made.batches([(0, 1, 2, 3)]))
    gamma, slope = made.schedule(torch.tensor(player.shares(batch.sample), dtype=torch.float64))
    x0, t = player.held[0](batch).double(), times_at(player.loss.schedule, gamma)
    noise = player.noise(batch, x0)
    alpha, sigma, _ = at_times(player.loss.schedule, t, x0)
    output = player.network(player._wide(player.held[1](batch)))(alpha * x0 + sigma * noise, t.float())
    error = (output - noise).square().flatten(1).mean(1)  # the tiny model predicts noise
    torch.testing.assert_close(player(batch, 0).total, (0.5 * slope * error) ** 2, rtol=1e-9, atol=0)


def test_the_result_is_a_table_of_times_to_draw_at(tiny_folder, make_run, tiny_pipeline):
    run = make_run({"name": "learned_schedule", "init": str(tiny_folder)}, {"captions": ["text"]})
    train(run)
    found = json.loads((tiny_folder.__class__(run.output) / "model" / "schedule.json").read_text())
    assert len(found["log_snr"]) == 1001 and found["log_snr"] == sorted(found["log_snr"], reverse=True)
    for sampler in ("ddpm", "dpmpp_2m"):
        made = tiny_pipeline("a disc", timesteps=found["timesteps"]["4"], sampler=sampler, seed=1, output_type="pt")
        assert made.images.isfinite().all()


def test_pure_noise_and_no_model_are_refused(tiny_folder, make_run):
    ending = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    with pytest.raises(ConfigError, match="ends on pure noise"):
        build_objective(make_run({"name": "learned_schedule", "init": str(tiny_folder), "scheduler": ending}))
    with pytest.raises(ConfigError, match=r"objective\.init: give the model"):
        build_objective(make_run({"name": "learned_schedule"}))
