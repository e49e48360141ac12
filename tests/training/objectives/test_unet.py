import json
from pathlib import Path

import numpy as np
import pytest
import torch

from latent_diffusion.checkpoint.folder.diffusers_folder import load_folder
from latent_diffusion.data.batches.folder import DataConfig
from latent_diffusion.diffusion.prediction import EPSILON, V
from latent_diffusion.errors import ConfigError
from latent_diffusion.training.objective import Share
from latent_diffusion.training.objectives.unet import UNetObjective
from latent_diffusion.training.run import build_objective, train
from latent_diffusion.training.state.launch import build_accelerator
from latent_diffusion.training.trainer import Trainer

ROOT = Path(__file__).parents[3]

CAPTIONED = {"captions": ["text", "text_alt"], "caption_dropout": 0.3, "flip": True}
NO_CACHE = {"latent_cache_bytes": 0, "text_cache_bytes": 0}


def scratch(folder: Path, **settings) -> dict:
    parts = {"vae": str(folder / "vae"), "text_encoder": str(folder)}
    return {"name": "unet", "parts": parts, "unet": "tiny", **settings}


def tune(folder: Path, **settings) -> dict:
    return {"name": "unet", "init": str(folder), **settings}


def trained(run) -> UNetObjective:
    torch.manual_seed(run.seed)
    trainer = Trainer(build_objective(run), run, build_accelerator())
    trainer.fit()
    built = trainer.objective
    assert isinstance(built, UNetObjective)
    return built


def weights(built: UNetObjective) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in built.components.unet.parameters()])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_caching_changes_nothing(tiny_folder, make_run, precision):
    cached = trained(make_run(tune(tiny_folder), CAPTIONED, precision=precision, steps=4))
    plain = trained(make_run(tune(tiny_folder, **NO_CACHE), CAPTIONED, precision=precision, steps=4))
    assert cached.player.held[0].cached and not plain.player.held[0].cached
    tolerance = 1e-5 if precision == "float32" else 1e-3  # other batches of the encoders round otherwise
    assert torch.allclose(weights(cached), weights(plain), atol=tolerance)


def test_what_is_read_before_preparation_is_named(tiny_folder, make_run):
    built = build_objective(make_run(tune(tiny_folder), CAPTIONED))
    with pytest.raises(AttributeError, match="has no attribute 'held'"):
        next(built.batches([[0]]))


def test_posterior_noise_is_fresh_in_every_epoch(tiny_folder, make_run):
    built = trained(make_run(tune(tiny_folder), {"captions": ["text"]}, steps=1))
    latents = built.player.held[0]
    row = built.data.row_of(0)
    again = next(n for n in range(4, 8) if built.data.row_of(n) == row)
    first, second = (next(built.batches([[n]])) for n in (0, again))
    assert first.row == second.row and not torch.equal(latents(first), latents(second))
    assert torch.equal(latents(first), latents(next(built.batches([[0]]))))


def test_one_process_or_two_see_the_same_draws(tiny_folder, make_run):
    built = trained(make_run(tune(tiny_folder), CAPTIONED, steps=1))
    whole = next(built.batches([[8, 9, 10, 11]]))
    halves = list(built.batches([[8, 9], [10, 11]]))
    latents, player = built.player.held[0], built.player
    assert torch.equal(latents(whole), torch.cat([latents(half) for half in halves]))
    assert torch.equal(player.times(whole.sample), torch.cat([player.times(half.sample) for half in halves]))
    assert whole.captions == halves[0].captions + halves[1].captions


def test_times_cover_every_part_of_the_global_batch(tiny_folder, make_run):
    built = build_objective(make_run(tune(tiny_folder), CAPTIONED, batch_size=8))
    for update in range(5):
        times = built.player.times(range(update * 8, update * 8 + 8)).numpy()
        assert sorted(times // 125) == list(range(8))
    assert times.tolist() != sorted(times.tolist())
    free = build_objective(make_run(tune(tiny_folder, stratified=False), CAPTIONED, batch_size=8))
    many = free.player.times(range(4000)).double()
    assert abs(many.mean() - 499.5) < 15 and many.min() >= 0 and many.max() <= 999


def test_a_dropped_caption_is_the_empty_prompt_of_sampling(tiny_folder, make_run):
    built = trained(make_run(tune(tiny_folder), {"captions": ["text"], "caption_dropout": 1.0}, steps=1))
    batch = next(built.batches([[0, 1]]))
    assert batch.captions == ("", "")
    empty = built.components.text_encoder([""]).context[0]
    assert torch.allclose(built.player.held[1](batch).context[1], empty, atol=1e-5)


def test_only_the_unet_moves_and_diffusers_opens_what_comes_out(tiny_folder, make_run, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    run = make_run(
        scratch(
            tiny_folder, scheduler={"prediction_type": "v_prediction"}, weighting="min_snr", validation={"split": "val"}
        ),
        CAPTIONED,
        steps=6,
        accumulation=2,
        gradient_checkpointing=True,
        precision="bfloat16",
        ema={"decay": 0.9},
        sample={"every": 3, "prompts": ["a red disc", "a blue disc"], "steps": 2, "seed": 2**32 - 1},
    )
    assert train(run) == 0
    folder = tmp_path / "run" / "model"
    assert (tmp_path / "run" / "samples").is_dir() and list((tmp_path / "run" / "samples").iterdir())
    model, before = load_folder(folder), load_folder(tiny_folder)
    assert model.prediction is V
    for name in ("autoencoder", "text_encoder"):
        old, new = getattr(before, name).state_dict(), getattr(model, name).state_dict()
        assert all(torch.equal(old[key], new[key]) for key in old)
    assert json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["prediction_type"] == "v_prediction"
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(str(folder), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    picture = pipe("a red disc", num_inference_steps=2, height=32, width=32, output_type="np").images
    assert picture.shape == (1, 32, 32, 3) and np.isfinite(picture).all()


def test_fine_tuning_lowers_the_loss_and_keeps_the_prediction(tiny_folder, make_run):
    run = make_run(
        tune(tiny_folder, validation={"split": "train"}),
        {"captions": ["text"]},
        steps=20,
        optimizer={"learning_rate": 5e-3},
        warmup=3,
    )
    torch.manual_seed(0)
    built = build_objective(run)
    trainer = Trainer(built, run, build_accelerator())
    before, again = built.evaluate(Share()), built.evaluate(Share())
    assert all(torch.equal(before[name], again[name]) for name in before)  # a fixed lattice
    assert sorted(before) == ["validation_loss", *(f"validation_loss_{band}" for band in range(4))]
    trainer.fit()
    after = built.evaluate(Share())
    assert after["validation_loss"].mean() < 0.9 * before["validation_loss"].mean()
    assert built.components.prediction is EPSILON


def test_attention_over_one_cell_is_left_alone(tiny_folder, make_run):
    """8 px are 2 latent px, 1 at the U-Net's lower level; the audit would stop there."""
    run = make_run(tune(tiny_folder), {"captions": ["text"], "size": 8}, steps=6)
    assert train(run) == 0
    built = build_objective(run)
    idle = {name for name, p in built.components.unet.named_parameters() if not p.requires_grad}
    assert "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight" in idle
    assert all(name.endswith(("attn1.to_q.weight", "attn1.to_k.weight")) for name in idle)
    assert not any(name.startswith("down_blocks.0") for name in idle)


def test_digests_follow_data_and_weights(tiny_folder, make_run):
    one = build_objective(make_run(tune(tiny_folder), {"captions": ["text"]})).fingerprint()
    assert one == build_objective(make_run(tune(tiny_folder), {"captions": ["text"]})).fingerprint()
    other = build_objective(make_run(scratch(tiny_folder), {"captions": ["text"], "where": {"split": "val"}}))
    assert other.fingerprint()["data.path"] != one["data.path"]
    assert set(other.fingerprint()) == {"data.path", "objective.parts.vae", "objective.parts.text_encoder"}


def test_settings_that_cannot_be(tiny_folder, make_run):
    data = {"captions": ["text"]}
    for bad, words in (
        ({"name": "unet"}, "either `init`"),
        ({**scratch(tiny_folder), "init": "x"}, "either `init`"),
        (tune(tiny_folder, unet="tiny"), "leave `unet` out"),
        (scratch(tiny_folder, unet="sd9"), "neither a family"),
        (scratch(tiny_folder, unet={"sample_sise": 8}), "did you mean 'sample_size'"),
        (scratch(tiny_folder, unet="emoji"), "cross_attention_dim is 256"),
    ):
        with pytest.raises(ConfigError, match=words):
            build_objective(make_run(bad, data))
    with pytest.raises(ConfigError, match="not a multiple of the autoencoder's 4 px"):
        build_objective(make_run(tune(tiny_folder), {**data, "size": 30}))


def test_the_shipped_configurations_parse():
    from latent_diffusion.config import parse_section, read_config
    from latent_diffusion.registry import find

    files = [file for file in (ROOT / "configs").rglob("*.yaml") if file.parent.name != "accelerate"]
    assert len(files) >= 9
    for file in files:
        name, run = file.stem, read_config(file, ["steps=5000"])
        kind = find("latent_diffusion.training.objectives", run.objective["name"])
        parse_section(kind.settings_type, {k: v for k, v in run.objective.items() if k != "name"}, name)
        data = parse_section(kind.data_type, run.data, name)
        assert not isinstance(data, DataConfig) or (ROOT / data.path).exists()
