"""Distribution matching distillation: the losses of both players, who moves when, and what runs write."""

import json
from typing import Any

import pytest
import torch

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.checkpoint.files.safetensors_file import open_file
from latent_diffusion.checkpoint.folder.trained_times import HEADER
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.errors import ConfigError
from latent_diffusion.guidance.cfg import CFG
from latent_diffusion.randomness import generator, normal
from latent_diffusion.samplers.lcm import LCM
from latent_diffusion.training.adapters.adapter_files import PEFT_FILE
from latent_diffusion.training.run import build_objective, train
from latent_diffusion.training.state.launch import build_accelerator
from latent_diffusion.training.trainer import Trainer

SCALE, STEPS = 2.0, 2


def prepared(run) -> Any:
    torch.manual_seed(run.seed)
    return Trainer(build_objective(run), run, build_accelerator())


def objective(folder, **changes):
    return {"name": "distribution_matching", "init": str(folder), "guidance_scale": SCALE, "steps": STEPS, **changes}


@pytest.mark.parametrize("family", ["sd1", "sd2_v"])
def test_both_losses_are_those_of_the_samplers_and_of_the_paper(tiny_family, make_run, family):
    """For a model of the layout of SD 1.5 and one that predicts v: LCM draws, the gradient is of the guided teacher."""
    run = make_run(objective(tiny_family(family)), {"captions": ["text"]}, precision="float64", fast=False)
    made = prepared(run).objective
    student, fake, parts = made.player, made.players["fake"], made.components
    with torch.no_grad():
        for k, p in enumerate(fake.parameters()):
            p.mul_(1.01 if k % 2 else 0.99)  # another network than the teacher
    batches = list(made.batches([tuple(range(4 * k, 4 * k + 4)) for k in range(4)]))
    places = [student.place(batch) for batch in batches]
    assert set(places) == {0, 1}
    levels = [parts.schedule.level(t) for t in (999.0, 499.0)]
    for batch in (batches[places.index(0)], batches[places.index(1)]):
        cond = student.held[1](batch).to(dtype=torch.float64)
        empty = parts.text_encoder([""]).to(dtype=torch.float64)
        seeds = [int(generator(run.seed, "student noise", n).integers(2**63)) for n in batch.sample]
        noise = NoiseSource([torch.Generator().manual_seed(seed) for seed in seeds])
        x = noise.draw((4, 8, 8)).double()
        network = parts.denoiser(parts.unet, torch.float64).bind(cond)
        k = student.place(batch)
        with torch.no_grad():
            for step in LCM()(network, x, levels[: k + 1], noise):
                x = step.x
        x0 = network(x, levels[k])
        # the fake network: the usual loss on the student's pictures
        found, t = fake(batch, 0).total, fake.times(batch.sample)
        drawn = normal(fake.seed, "noise", batch.sample, (4, 8, 8)).double()
        alpha, sigma = (c.view(-1, 1, 1, 1) for c in parts.schedule.alpha_sigma(t))
        output = made.fake_parts.unet(alpha * x0 + sigma * drawn, t.float(), made.fake_parts.unet.project(cond))
        target = drawn if family == "sd1" else alpha * drawn - sigma * x0
        torch.testing.assert_close(found, (output - target).square().mean((1, 2, 3)), rtol=1e-9, atol=1e-12)
        # the student: its picture moves by the difference of two estimates
        found, t = student(batch, 0).total, student.times(batch.sample)
        assert ((t >= 20) & (t < 980)).all() and len(set(t.tolist())) == 4
        drawn = normal(run.seed, "noise", batch.sample, (4, 8, 8)).double()
        moved = []
        for i, time in enumerate(t.tolist()):
            level = parts.schedule.level(float(time))
            noised = level.alpha * x0[i : i + 1] + level.sigma * drawn[i : i + 1]
            teacher = parts.denoiser(made.teacher, torch.float64)
            real = CFG(SCALE).bind(teacher, cond[i : i + 1], empty)(noised, level)
            own = parts.denoiser(made.fake_parts.unet, torch.float64).bind(cond[i : i + 1])(noised, level)
            moved.append(((own - real) / (x0[i] - real).abs().mean()).detach())
        moved = torch.cat(moved)
        torch.testing.assert_close(found, 0.5 * moved.square().mean((1, 2, 3)), rtol=1e-8, atol=1e-12)
        weights = [p for p in student.parameters() if p.requires_grad]
        of_loss = torch.autograd.grad(found.sum(), weights)
        by_hand = torch.autograd.grad((x0 * moved).sum() / moved[0].numel(), weights)
        torch.testing.assert_close(of_loss, by_hand, rtol=1e-7, atol=1e-10)


class Moves:
    """Notes which networks have changed after each update."""

    def __init__(self, trainer):
        self.now = self.weights(trainer)
        self.moved = []

    @staticmethod
    def weights(trainer):
        return {name: [p.detach().clone() for p in of.values()] for name, of in trainer.trainable.items()}

    def after_backward(self, player, step):
        pass

    def after_update(self, trainer, figures):
        before, self.now = self.now, self.weights(trainer)
        self.moved.append([n for n in before if not all(map(torch.equal, before[n], self.now[n]))])


def test_the_student_moves_once_for_several_updates_of_the_fake_network(tiny_folder, make_run):
    """As adapters: two sets of changes of one model, which stays as it is."""
    adapter = {"rank": 2, "layers": ["attn2.to_v"]}
    trainer = prepared(make_run(objective(tiny_folder, fake_updates=3, adapter=adapter), steps=4, batch_size=2))
    made = trainer.objective
    base = {name: p.clone() for name, p in made.teacher.named_parameters()}
    shared = {id(p) for p in made.teacher.parameters()}
    for parts in (made.components, made.fake_parts):
        own = [p for p in parts.unet.parameters() if id(p) not in shared]
        assert own and all(p.requires_grad for p in own)
    watch = Moves(trainer)
    trainer.fit([watch])
    assert watch.moved == [["fake", "unet"], ["fake"], ["fake"], ["fake", "unet"]]
    assert all(torch.equal(p, base[name]) for name, p in made.teacher.named_parameters())


def test_a_student_draws_in_its_own_steps_by_default(tiny_family, make_run):
    diffusers = pytest.importorskip("diffusers")
    run = make_run(objective(tiny_family("sd1")), steps=1, batch_size=2)
    assert train(run) == 0
    folder = run.output / "model"
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert config["_class_name"] == "LCMScheduler"
    assert (config["_trained_spacing"], config["_trained_steps"]) == ("lcm", STEPS)
    assert config["_usage_hint"] == "sampler LCM, spacing lcm, 2 steps, guidance scale 1"
    again: Any = build_objective(make_run({"name": "unet", "init": str(folder)}))  # trains at all times
    assert not {name for name in again.components.scheduler_config if name.startswith(("_trained", "_usage"))}
    pipe = LatentDiffusionPipeline.from_pretrained(folder, device="cpu")
    steps = []
    record = pipe("a red disc", seed=0, on_step=lambda step: steps.append(step.index)).records[0]
    assert steps == [0, 1] and (record.sampler, record.guidance_scale) == ("lcm", 1.0)
    theirs = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True).scheduler
    theirs.set_timesteps(STEPS)
    assert theirs.timesteps.tolist() == [999, 499]


def test_an_adapter_has_its_use_in_its_header(tiny_folder, make_run):
    adapter = {"rank": 2, "layers": ["attn2.to_v"]}
    run = make_run(objective(tiny_folder, steps=1, adapter=adapter), steps=1, batch_size=2, ema={"decay": 0.5})
    assert train(run) == 0
    file = run.output / "model" / "run.safetensors"
    header = open_file(file)[1]
    assert header["modelspec.usage_hint"] == "sampler LCM, spacing lcm, 1 step, guidance scale 1"
    times = [header[f"latent_diffusion.trained_{name}"] for name in ("spacing", "steps")]
    assert times == ["lcm", "1"] == [open_file(file.with_name(PEFT_FILE))[1][name] for name in HEADER[:2]]


@pytest.mark.parametrize(
    ("changes", "data", "message"),
    [
        ({"init": None}, {}, "give the model that is distilled"),
        ({}, {"flip": True}, "no picture is read"),
        ({"adapter": {"parts": ["unet", "text_encoder"]}}, {}, "read the same text states"),
        ({"latent_cache_bytes": 1}, {}, "unknown key"),
        ({"teacher_steps": 50}, {}, "unknown key"),
    ],
)
def test_settings_that_cannot_be_are_refused(tiny_folder, make_run, changes, data, message):
    with pytest.raises(ConfigError, match=message):
        build_objective(make_run(objective(tiny_folder, **changes), data))
