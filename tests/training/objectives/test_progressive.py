"""Progressive distillation: two steps of the teacher in one, and rounds of it."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.diffusion.denoiser import Denoiser, at_times
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.path import towards
from latent_diffusion.randomness import normal
from latent_diffusion.samplers.ddim import DDIM
from latent_diffusion.schedules.rectified_flow import RectifiedFlow
from latent_diffusion.schedules.scaled_linear import ScaledLinearSchedule
from latent_diffusion.training.losses.students.halving import Halving
from latent_diffusion.training.run import build_objective, train
from latent_diffusion.training.state.launch import build_accelerator
from latent_diffusion.training.trainer import Trainer

MEAN, SPREAD = 0.7, 0.4


@pytest.mark.parametrize("law", [ScaledLinearSchedule(), ScaledLinearSchedule(zero_terminal_snr=True), RectifiedFlow()])
def test_one_step_to_the_target_is_two_of_the_teacher(law):
    """Gaussian data and the exact teacher: drawing with the targets in 4 steps is drawing with the teacher in 8."""
    halving = Halving(law, 4)

    def teach(x, t):
        alpha, sigma, _ = at_times(law, t, x)
        return MEAN + alpha * SPREAD**2 / ((alpha * SPREAD) ** 2 + sigma**2) * (x - alpha * MEAN)

    start = x = torch.linspace(-2, 2, 5, dtype=torch.float64).view(-1, 1, 1, 1)
    for now, middle, last in (torch.from_numpy(row)[:, None].expand(3, 5) for row in halving.times()):
        half = halving.step(x, teach(x, now), now, middle)
        target = halving.target(x, halving.step(half, teach(half, middle), middle, last), now, last)
        x = halving.step(x, target, now, last)
    by_teacher = start
    times = [999, *np.arange(874, 0, -125), -1]
    for now, after in itertools.pairwise(times):
        level, goal = law.level(float(now)), law.level(float(after))
        by_teacher = towards(by_teacher, teach(by_teacher, torch.full((5,), int(now))), level, goal)
    torch.testing.assert_close(x, by_teacher, rtol=1e-12, atol=1e-12)


def test_the_students_times_are_every_second_of_the_teachers_for_any_number():
    places = Halving(ScaledLinearSchedule(), 8).times()
    assert places[0].tolist() == [999, 937, 874] and places[-1].tolist()[2] == -1
    assert (np.diff(places, axis=1) < 0).all() and (places[1:, 0] == places[:-1, 2]).all()


def test_the_loss_is_the_distance_to_two_guided_steps_of_the_samplers(tiny_folder, make_run):
    objective = {"name": "progressive", "init": str(tiny_folder), "guidance_scale": 2.0, "steps": 4}
    run = make_run(objective, {"captions": ["text"]}, precision="float64", fast=False)
    torch.manual_seed(0)
    made: Any = build_objective(run)
    Trainer(made, run, build_accelerator())
    player, batch = made.player, next(made.batches([(0, 1, 2, 3)]))
    losses, parts = player(batch, 0).total, made.components
    x0, cond = player.held[0](batch).double(), player.held[1](batch).to(dtype=torch.float64)
    empty = parts.text_encoder([""]).to(dtype=torch.float64)
    denoiser = Denoiser(made.teacher, parts.schedule, parts.prediction, torch.float64)
    noise = normal(run.seed, "noise", batch.sample, (4, 8, 8)).double()
    for k, place in enumerate(player.places(batch.sample).tolist()):
        first, middle, last = (parts.schedule.level(float(t)) for t in place)
        x = first.alpha * x0[k : k + 1] + first.sigma * noise[k : k + 1]
        yes, no = denoiser.bind(cond[k : k + 1]), denoiser.bind(empty)

        def guided(x, level, yes=yes, no=no):
            return no(x, level) + 2.0 * (yes(x, level) - no(x, level))

        *_, done = DDIM()(guided, x, [first, middle, last], NoiseSource([0]))
        ratio = last.sigma / first.sigma
        target = (done.x - ratio * x) / (last.alpha - ratio * first.alpha)
        wanted = (denoiser.bind(cond[k : k + 1])(x, first) - target).square().mean()  # the student is the teacher yet
        weight = max((first.alpha / first.sigma) ** 2, 1.0)
        torch.testing.assert_close(losses[k], wanted * weight, rtol=1e-9, atol=1e-12)


def test_a_student_is_the_teacher_of_the_next_round(tiny_folder, make_run, tmp_path):
    first = make_run({"name": "progressive", "init": str(tiny_folder), "steps": 8}, steps=1, batch_size=2)
    assert train(first) == 0
    objective = {"name": "progressive", "init": str(first.output / "model"), "steps": 4}
    second = make_run(objective, steps=1, batch_size=2, output=str(tmp_path / "second"))
    made: Any = build_objective(second)
    assert made.player.guidance_scale == 1.0
    pipe = LatentDiffusionPipeline.from_pretrained(first.output / "model", device="cpu")
    steps = []
    drawn = pipe("a red disc", seed=0, on_step=lambda step: steps.append(step.index))
    record = drawn.records[0]
    config = pipe.components.scheduler_config
    assert (config["_trained_spacing"], config["_trained_steps"]) == ("trailing", 8)
    assert made.trained_times().times(made.components.schedule) == [float(t) for t in made.player.halving.times()[:, 0]]
    assert len(steps) == 8 and (record.sampler, record.spacing, record.guidance_scale) == ("ddim", "trailing", 1.0)
