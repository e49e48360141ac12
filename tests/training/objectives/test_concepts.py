"""Concepts changed from prompts alone: the target, the latents, and what a run comes to."""

import pytest
import torch

from latent_diffusion.errors import ConfigError
from latent_diffusion.training.losses.sliding import ConceptSettings, Numbers
from latent_diffusion.training.run import build_objective, train
from latent_diffusion.training.state.launch import build_accelerator
from latent_diffusion.training.trainer import Trainer

ERASE = {"prompt": "a red disc"}


@pytest.fixture
def make_slide(make_run):
    """Return a function that makes a run without pictures."""

    def make(folder, *concepts, data=None, **values):
        own = {key: values.pop(key) for key in ("adapter", "draw_steps", "draw_guidance_scale") if key in values}
        objective = {"name": "concepts", "init": str(folder), "concepts": list(concepts), "draw_steps": 4, **own}
        run = make_run(objective, **values)
        return run.model_copy(update={"data": {"size": 32} if data is None else data})

    return make


def prepared(run):
    torch.manual_seed(run.seed)
    return Trainer(build_objective(run), run, build_accelerator())


def test_the_target_is_the_papers(tiny_folder, make_slide):
    slide = {"prompt": "a disc", "anchor": "a disc", "toward": "a red disc", "away": "a blue disc", "strength": 2.0}
    player = prepared(make_slide(tiny_folder, slide)).objective.players["unet"]
    numbers, base = Numbers((0, 1, 2, 3, 4, 5)), player.base[0]
    losses = player(numbers, 0).total
    # the change is zero at first, so x is what the base draws: DDIM by hand, one sample at a time
    for k, number in enumerate(numbers.sample):
        stop = player.step_of(number)
        with torch.no_grad():
            x = player._drawn([number], [0], player.held["a disc"])
            for level, after in zip(player.levels[:stop], player.levels[1:]):
                t = torch.tensor([float(level.t)])
                yes, no = (base.unet(x, t, base.unet.project(player.held[p])) for p in ("a disc", ""))
                eps = no + 3.0 * (yes - no)
                x0 = (x - level.sigma * eps) / level.alpha
                x = after.alpha * x0 + after.sigma * eps
            t = torch.tensor([float(player.levels[stop].t)])
            of = {p: base.unet(x, t, base.unet.project(player.held[p])) for p in player.held}
            target = of["a disc"] + 2.0 * (of["a red disc"] - of["a blue disc"])
            wanted = (of["a disc"] - target).square().mean()
        torch.testing.assert_close(losses[k].detach(), wanted, rtol=1e-4, atol=1e-6)
    assert len({player.step_of(n) for n in range(50)}) == 4


def test_what_is_left_out_erases():
    assert ConceptSettings(prompt="a cat").base_prompts == ("", "", "a cat")
    assert ConceptSettings(prompt="a cat", toward="a dog").base_prompts == ("a dog", "a dog", "a cat")
    assert ConceptSettings(prompt="a cat", toward="a cat").base_prompts == ("a cat",) * 3


@pytest.mark.parametrize("family", ["sd2_v", "sdxl"])
def test_a_run_without_pictures_writes_an_adapter(tiny_family, make_slide, family):
    from latent_diffusion.adapters.lora_file import read_lora
    from latent_diffusion.checkpoint.folder.diffusers_folder import load_folder

    concepts = [ERASE, {"prompt": "a blue disc", "toward": "a blue disc"}]
    adapter = {"rank": 2, "parts": ["unet", "text_encoder"]}
    sample = {"every": 6, "prompts": ["a red disc"], "steps": 2}
    run = make_slide(tiny_family(family), *concepts, adapter=adapter, steps=6, sample=sample)
    assert train(run) == 0
    read = read_lora(run.output / "model" / "run.safetensors", load_folder(tiny_family(family)))
    assert not read.report.unmatched and set(read.updates) == {"unet", "text_encoder"}
    assert {file.suffix for file in (run.output / "samples").iterdir()} == {".png"}


def test_the_prediction_reaches_its_target(tiny_folder, make_slide):
    concepts = [ERASE, {"prompt": "a blue disc", "toward": "a blue disc"}]
    run = make_slide(
        tiny_folder, *concepts, steps=60, batch_size=4, adapter={"rank": 4}, draw_guidance_scale=1.0,
        optimizer={"learning_rate": 1e-2},
    )  # fmt: skip
    trainer = prepared(run)
    player = trainer.objective.players["unet"]
    numbers = Numbers(tuple(range(1000, 1016)))

    def error():
        with torch.no_grad():
            losses = player(numbers, 0).total
        erased = torch.tensor([player.concept_of(n).prompt == "a red disc" for n in numbers.sample])
        return losses[erased].mean(), losses[~erased].mean()

    before, _ = error()
    trainer.fit()
    after, kept = error()
    assert after < 0.5 * before and kept < 0.5 * before


def test_settings_that_cannot_be_are_refused(tiny_folder, make_slide):
    for concepts, data, message in (
        ([], None, "concepts"),
        ([ERASE], {"size": 30}, "not a multiple"),
        ([ERASE], {"size": 32, "path": "x"}, "unknown key `path`"),
        ([{"prompt": "a", "towards": "b"}], None, "did you mean 'toward'"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_objective(make_slide(tiny_folder, *concepts, data=data))
