"""Learned variance: the widened start, the loss, and what comes of it elsewhere."""

import json
import math
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.checkpoint.folder.diffusers_folder import load_folder
from latent_diffusion.cli.main import main
from latent_diffusion.diffusion.denoiser import at_times
from latent_diffusion.diffusion.posterior import posterior, posterior_mean
from latent_diffusion.errors import CheckpointError, ConfigError
from latent_diffusion.training.run import build_objective, train
from latent_diffusion.training.state.launch import build_accelerator
from latent_diffusion.training.trainer import Trainer

PROMPT: dict[str, Any] = {"num_inference_steps": 4, "seed": 3, "output_type": "pt"}


@pytest.fixture(scope="module")
def learned(tiny_folder, tmp_path_factory, pictures):
    """A folder of two updates."""
    from latent_diffusion.config import RunConfig

    folder = tmp_path_factory.mktemp("learned")
    objective = {"name": "learned_variance", "init": str(tiny_folder), "bound_weight": 1.0}
    data = {"path": str(pictures), "size": 32, "captions": ["text"]}
    values = {"output": str(folder / "run"), "steps": 2, "batch_size": 4, "threads": 1, "objective": objective}
    train(RunConfig.model_validate({**values, "data": data}))
    return folder / "run" / "model"


def held(tiny_folder, make_run, **objective):
    run = make_run({"name": "learned_variance", "init": str(tiny_folder), **objective}, precision="float64", fast=False)
    torch.manual_seed(0)
    made = build_objective(run)
    Trainer(made, run, build_accelerator())
    return made, next(made.batches([(0, 1, 2, 3)]))


def test_at_the_start_it_draws_what_the_base_draws(tiny_folder, make_run):
    made, _ = held(tiny_folder, make_run)
    base, wide = (LatentDiffusionPipeline(load_folder(tiny_folder)), LatentDiffusionPipeline(made.components))
    made.components.unet.float().eval()
    for sampler in ("ddpm", "dpmpp_2m"):
        pictures = [pipe("a disc", sampler=sampler, **PROMPT).images for pipe in (base, wide)]
        torch.testing.assert_close(*pictures, rtol=0, atol=1e-5)


CHAIN = [66, 132, 199, 266, 332, 399, 466, 532, 599, 666, 732, 799, 866, 932, 999]


@pytest.mark.parametrize("levels,visited", [(None, list(range(1000))), (15, CHAIN)])
def test_the_loss_is_the_simple_one_and_the_weighted_bound(tiny_folder, make_run, levels, visited):
    made, batch = held(tiny_folder, make_run, bound_weight=0.2, levels=levels)
    player = made.player
    with torch.no_grad():
        player.unet.conv_out.bias[4:] = torch.tensor([-0.7, -0.2, 0.3, 0.8])
        total = player(batch, 0).total
        x0 = player.held[0](batch).double()
        t = player.times(batch.sample)
        noised = player.loss.noised(x0, t, player.noise(batch, x0))
        mean, v = player.network(player._wide(player.held[1](batch)))(noised.x, noised.time).chunk(2, dim=1)
    schedule, before = player.loss.schedule, torch.tensor([visited[visited.index(time) - 1] for time in t.tolist()])
    alpha, sigma, earlier = at_times(schedule, t, x0, before)
    estimate = player.loss.prediction.x0(mean, noised.x, alpha, sigma, at_times(schedule, t, x0)[2])
    step = posterior(alpha, sigma, *earlier)
    assert (before < t).all(), "no picture of this batch is decoded"
    share = (1 + v) / 2
    wide = torch.exp(share * (step.variance * (sigma / earlier[1]) ** 2).log() + (1 - share) * step.variance.log())
    exact = Normal(posterior_mean(noised.x, x0, step), step.variance.sqrt())
    kl = kl_divergence(exact, Normal(posterior_mean(noised.x, estimate, step), wide.sqrt())).flatten(1).sum(1)
    bits = len(visited) * kl / (x0[0].numel() * math.log(2))
    simple = (mean - noised.target).square().flatten(1).mean(1)
    torch.testing.assert_close(total, simple + 0.2 * bits, rtol=1e-10, atol=0)


def test_a_chain_is_trained_at_the_times_that_are_drawn_with(tiny_folder, make_run):
    """Each time of the chain alike, and no other, by either law; each step ends where the sampler's ends."""
    for law in ("uniform", "importance"):
        made, _ = held(tiny_folder, make_run, levels=15, weighting="min_snr", times={"law": law})
        player, drawn = made.player, made.player.times(range(3000))
        assert sorted(set(drawn.tolist())) == CHAIN
        counts = torch.bincount(drawn)[CHAIN] / 3000
        weight = torch.ones(15) if law == "uniform" else player.loss.weight(torch.tensor(CHAIN))
        torch.testing.assert_close(counts, (weight / weight.sum()).float(), rtol=0, atol=0.03)
    assert player.before(torch.tensor(CHAIN)).tolist() == [-1, *CHAIN[:-1]]
    assert player.before(torch.tensor([0, 66, 67, 150])).tolist() == [-1, -1, 66, 132]


def test_the_bound_trains_the_variance_and_not_the_mean(tiny_folder, make_run):
    gradients = {}
    for weight in (1e-9, 1e3):
        made, batch = held(tiny_folder, make_run, bound_weight=weight)
        made.player(batch, 0).total.sum().backward()
        gradients[weight] = made.components.unet.conv_out.weight.grad
    assert torch.equal(gradients[1e-9][:4], gradients[1e3][:4])
    assert gradients[1e3][4:].abs().min() > 0


def test_the_loss_of_a_hole_is_that_of_its_cells_alone(tiny_folder, make_run):
    """Both parts, the simple loss and the bound, are means over the hole; a hole of all cells is the whole."""
    made, batch = held(tiny_folder, make_run, bound_weight=0.2)
    player = made.player
    x0, t = player.held[0](batch).double(), player.times(batch.sample)
    noised = player.loss.noised(x0, t, player.noise(batch, x0))
    output = torch.cat([noised.target, torch.zeros_like(x0)], dim=1)
    hole = torch.zeros(len(x0), 1, *x0.shape[2:])
    hole[..., :3] = 1
    losses = player.compared(x0, noised, t, output, hole)
    assert (losses > 0).all()  # of the variance; the mean is right
    elsewhere = output + 0.5 * (1 - hole)
    assert torch.equal(player.compared(x0, noised, t, elsewhere, hole), losses)
    assert (player.compared(x0, noised, t, output + 0.5 * hole, hole) != losses).all()
    whole = player.compared(x0, noised, t, elsewhere, torch.ones_like(hole))
    torch.testing.assert_close(whole, player.compared(x0, noised, t, elsewhere))


def test_the_result_is_a_folder_that_draws_with_every_sampler(learned, tmp_path):
    config = json.loads((learned / "scheduler" / "scheduler_config.json").read_text())
    assert (config["_class_name"], config["variance_type"]) == ("DDPMScheduler", "learned_range")
    pipe = LatentDiffusionPipeline.from_pretrained(learned)
    assert pipe.components.learned_variance and pipe.defaults.sampler == "ddpm"
    mixed = ["a red disc", "a disc (red:1.2) AND a blue one"]
    alone = [pipe(text, **PROMPT | {"seed": 3 + k}).images for k, text in enumerate(mixed)]
    torch.testing.assert_close(pipe(mixed, **PROMPT).images, torch.cat(alone), rtol=0, atol=1e-4)
    assert pipe("a red disc", sampler="euler", **PROMPT).images.isfinite().all()
    pipe.save_single_file(tmp_path / "one.safetensors")
    again = LatentDiffusionPipeline.from_pretrained(tmp_path / "one.safetensors")
    assert torch.equal(again("a red disc", **PROMPT).images, pipe("a red disc", **PROMPT).images)


def test_diffusers_draws_what_this_package_draws(learned):
    """Without guidance, which diffusers' StableDiffusionPipeline applies to v too."""
    pipe = LatentDiffusionPipeline.from_pretrained(learned)
    theirs = pipe.to_diffusers()
    made = theirs(
        "a red disc", num_inference_steps=4, guidance_scale=1.0, height=32, width=32, output_type="latent",
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    ours = pipe("a red disc", guidance_scale=1.0, **PROMPT | {"output_type": "latent"}).images
    torch.testing.assert_close(made.images, ours, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["fixed_small", "learned"])
def test_a_variance_that_the_folder_does_not_name_is_refused(learned, tmp_path, kind, capsys):
    copy = shutil.copytree(learned, tmp_path / "copy")
    file = copy / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"variance_type": kind}))
    assert main(["generate", "a disc", "--model", str(copy), "--output", str(tmp_path / "x.png")]) == 4
    assert f"has variance_type '{kind}'" in capsys.readouterr().err


def test_a_fixed_variance_called_learned_is_refused(tiny_folder):
    plain = load_folder(tiny_folder)
    config = {**plain.scheduler_config, "_class_name": "DDPMScheduler", "variance_type": "learned_range"}
    with pytest.raises(CheckpointError, match="4 output channels"):
        replace(plain, scheduler_config=config).check(tiny_folder)


@pytest.mark.parametrize("name", ["unet", "lora", "consistency"])
def test_other_objectives_refuse_such_a_model(learned, make_run, name):
    with pytest.raises(ConfigError, match="a learned variance, which only"):
        build_objective(make_run({"name": name, "init": str(learned)}))
