"""Distillation: the losses of updates against a loop of diffusers' and torch's public classes, and what runs write."""

import copy
import json
from typing import Any

import pytest
import torch

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.checkpoint.files.safetensors_file import open_file
from latent_diffusion.diffusion.spacing import levels
from latent_diffusion.errors import ConfigError
from latent_diffusion.randomness import normal
from latent_diffusion.training.numbers import sample_numbers
from latent_diffusion.training.optimizer import optimizer_settings
from latent_diffusion.training.run import build_objective, train
from latent_diffusion.training.state.launch import build_accelerator
from latent_diffusion.training.trainer import Trainer

diffusers = pytest.importorskip("diffusers")

RATE, DECAY, SCALE, UPDATES = 1e-3, 0.6, 2.5, 4


class Losses:
    """Notes the loss of every update."""

    def __init__(self):
        self.values = []

    def after_backward(self, player, step):
        pass

    def after_update(self, trainer, figures):
        self.values.append(figures["unet/loss"])


def prepared(run) -> Any:
    torch.manual_seed(run.seed)
    return Trainer(build_objective(run), run, build_accelerator())


@pytest.mark.parametrize(("family", "target"), [("sd1", None), ("sd2_v", "student")])
def test_losses_are_those_of_a_loop_from_the_paper(tiny_family, make_run, family, target):
    """Algorithm 1 of arXiv:2310.04378 in float64, with its own noise table, guidance, solver and moving average."""
    folder = str(tiny_family(family))
    objective = {"name": "consistency", "init": folder, "guidance_scale": SCALE, "teacher_steps": 20, "target": target}
    run = make_run(
        objective, {"captions": ["text"]}, steps=UPDATES, batch_size=2, precision="float64", fast=False,
        optimizer={"learning_rate": RATE, "weight_decay": 0.0}, ema={"decay": DECAY, "warmup": 1.0}, clip_norm=1.0,
    )  # fmt: skip
    trainer, seen = prepared(run), Losses()
    wanted = by_hand(folder, trainer, averaged=target is None)
    trainer.fit([seen])
    assert seen.values == pytest.approx(wanted, rel=1e-7)
    assert len({round(loss, 6) for loss in wanted}) == UPDATES


def by_hand(folder, trainer, *, averaged):
    """Return the losses of the updates, and move a U-Net of diffusers as they do."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    student = pipe.unet.double().train()
    teacher, average = copy.deepcopy(student).requires_grad_(False), copy.deepcopy(student).requires_grad_(False)
    bars = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    alphas = torch.cat([torch.ones(1, dtype=torch.float64), bars]).sqrt()  # entry t + 1 is time t
    sigmas = (1 - alphas**2).sqrt()
    velocity = pipe.scheduler.config.prediction_type == "v_prediction"
    settings: Any = optimizer_settings(trainer.run)
    optimizer = torch.optim.AdamW(student.parameters(), RATE, settings.betas, settings.eps, weight_decay=0.0)
    vae, found = pipe.vae.double(), []

    def states(texts):
        ids = pipe.tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids
        return pipe.text_encoder(ids)[0].double()

    def at(table, t):
        return table[t + 1].view(-1, 1, 1, 1)

    def clean_and_noise(unet, x, t, context):
        output = unet(x, t, context).sample
        a, s = at(alphas, t), at(sigmas, t)
        return (a * x - s * output, a * output + s * x) if velocity else ((x - s * output) / a, output)

    def f(unet, x, t, context):
        s = 10.0 * (t + 1).double().view(-1, 1, 1, 1)
        clean, _ = clean_and_noise(unet, x, t.clamp(min=0), context)
        return 0.25 / (s**2 + 0.25) * x + s / (s**2 + 0.25).sqrt() * clean

    player, run = trainer.objective.player, trainer.run
    numbers = sample_numbers(run, start=0, rank=0, processes=1)
    from latent_diffusion.data.batches.loader import batches

    for _, batch in zip(range(UPDATES), batches(trainer.objective.data, numbers, 0)):
        t = player.times(batch.sample)
        assert ((t + 1) % 50 == 0).all()
        with torch.no_grad():
            posterior = vae.encode(batch.images.double()).latent_dist
            drawn = normal(run.seed, "posterior", batch.sample, (4, 8, 8)).double()
            x0 = (posterior.mean + posterior.std * drawn) * vae.config.scaling_factor
            x = at(alphas, t) * x0 + at(sigmas, t) * normal(run.seed, "noise", batch.sample, (4, 8, 8)).double()
            context, empty = states(list(batch.captions)), states([""] * len(batch.captions))
            clean, noise = clean_and_noise(teacher, x, t, context)
            clean_empty, noise_empty = clean_and_noise(teacher, x, t, empty)
            clean, noise = clean_empty + SCALE * (clean - clean_empty), noise_empty + SCALE * (noise - noise_empty)
            before = at(alphas, t - 50) * clean + at(sigmas, t - 50) * noise
            goal = f(average if averaged else student, before, t - 50, context)
        loss = (((f(student, x, t, context) - goal) ** 2 + 1e-6).sqrt() - 1e-3).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
        decay = min(DECAY, 1.0)
        with torch.no_grad():
            for kept, now in zip(average.parameters(), student.parameters(), strict=True):
                kept.lerp_(now, 1 - decay)
    return found


def test_a_student_draws_in_four_steps_by_default_and_remembers_its_law(tiny_family, make_run):
    run = make_run({"name": "consistency", "init": str(tiny_family("sd2_v"))}, steps=1, batch_size=2)
    assert train(run) == 0
    config = json.loads((run.output / "model" / "scheduler" / "scheduler_config.json").read_text())
    assert config["_class_name"] == "LCMScheduler" and config["prediction_type"] == "v_prediction"
    assert "variance_type" not in config
    pipe = LatentDiffusionPipeline.from_pretrained(run.output / "model", device="cpu")
    steps = []
    made = pipe("a red disc", seed=0, on_step=lambda step: steps.append(step.index))
    assert steps == [0, 1, 2, 3] and made.records[0].sampler == "lcm" and made.records[0].guidance_scale == 1.0
    theirs = diffusers.DiffusionPipeline.from_pretrained(run.output / "model", local_files_only=True)
    assert type(theirs.scheduler).__name__ == "LCMScheduler"


def test_a_student_of_another_grid_is_drawn_at_times_of_it(tiny_folder, make_run):
    """LCM's own times are some of 50; with 20 steps of the teacher the student is never trained at most of them."""
    made: Any = build_objective(make_run({"name": "consistency", "init": str(tiny_folder), "teacher_steps": 20}))
    found, law = made.trained_times(), made.components.schedule
    assert found.times(law) == made.player.function.times()[::-1].tolist()
    assert [level.t for level in levels(law, "lcm", 4)[:-1] if level.t not in found.times(law)] == [759.0, 259.0]
    assert found.usage == "sampler LCM, timesteps 999,749,499,249, guidance scale 1"


def test_a_student_may_be_an_adapter_whose_header_has_its_use(tiny_folder, make_run):
    objective = {"name": "consistency", "init": str(tiny_folder), "adapter": {"rank": 2}}
    sample = {"every": 1, "prompts": ["a red disc"], "steps": 2, "guidance_scale": 1.0}
    run = make_run(objective, steps=2, batch_size=2, ema={"decay": 0.5}, sample=sample)
    assert train(run) == 0
    file = run.output / "model" / "run.safetensors"
    assert open_file(file)[1]["modelspec.usage_hint"] == "sampler LCM, spacing lcm, 4 steps, guidance scale 1"
    pipe = LatentDiffusionPipeline.from_pretrained(tiny_folder, device="cpu")
    assert not pipe.load_lora_weights(file).unmatched
    assert (
        len(pipe("a red disc", seed=0, sampler="lcm", spacing="lcm", num_inference_steps=2, guidance_scale=1.0).images)
        == 1
    )


@pytest.mark.parametrize(
    ("changes", "values", "message"),
    [
        ({"init": None}, {}, "give the model that is distilled"),
        ({"target": "average"}, {}, "set ema"),
        ({"teacher_steps": 48}, {}, "do not divide its 1000"),
        ({"weighting": "min_snr"}, {}, "unknown key"),
        ({}, {"memory": {"base": "bfloat16"}}, "under objective.adapter"),
    ],
)
def test_settings_that_cannot_be_are_refused(tiny_folder, make_run, changes, values, message):
    with pytest.raises(ConfigError, match=message):
        build_objective(make_run({"name": "consistency", "init": str(tiny_folder), **changes}, **values))


def test_a_teacher_that_repaints_is_refused(tiny_family, make_run):
    with pytest.raises(ConfigError, match="repaints pictures"):
        build_objective(make_run({"name": "consistency", "init": str(tiny_family("sd1_inpaint"))}))
