"""Every family is trained: what its U-Net reads, and what comes out, whole and as an adapter."""

import json

import pytest
import torch
from PIL import Image

from latent_diffusion.adapters.lora_file import read_lora
from latent_diffusion.checkpoint.files.safetensors_file import open_file
from latent_diffusion.checkpoint.folder.diffusers_folder import load_folder
from latent_diffusion.checkpoint.single.single_file import save_single_file
from latent_diffusion.diffusion.prediction import V
from latent_diffusion.errors import ConfigError
from latent_diffusion.training.run import build_objective, train
from latent_diffusion.training.state.launch import build_accelerator
from latent_diffusion.training.trainer import Trainer

FAMILIES = ["sd1", "sd2_v", "sdxl", "sd1_inpaint", "sdxl_inpaint"]
CAPTIONED = {"captions": ["text", "text_alt"], "caption_dropout": 0.3, "flip": True}


def prepared(run):
    """Return the objective of a run, ready to train."""
    torch.manual_seed(run.seed)
    return Trainer(build_objective(run), run, build_accelerator()).objective


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_unet_of_each_family_is_trained_and_drawn_from(tiny_family, make_run, tmp_path, family):
    run = make_run(
        {"name": "unet", "init": str(tiny_family(family)), "validation": {"split": "val"}},
        CAPTIONED,
        steps=6,
        sample={"every": 6, "prompts": ["a red disc"], "steps": 2},
    )
    assert train(run) == 0
    model, before = load_folder(tmp_path / "run" / "model"), load_folder(tiny_family(family))
    assert model.prediction is before.prediction and (family != "sd2_v" or model.prediction is V)
    assert model.schedule == before.schedule and model.size_count == before.size_count
    same = [torch.equal(a, b) for a, b in zip(model.unet.parameters(), before.unet.parameters(), strict=True)]
    assert not any(same[:2])
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert any("validation_loss" in key for line in lines for key in line)
    assert any(file.name.startswith("step-") for file in (tmp_path / "run" / "samples").iterdir())


@pytest.mark.parametrize("family", ["sd2_v", "sdxl", "sdxl_inpaint"])
def test_an_adapter_of_each_family_is_trained_and_read(tiny_family, make_run, tmp_path, family):
    parts = ["unet", "text_encoder"] + (["text_encoder_2"] if "sdxl" in family else [])
    adapter = {"rank": 2, "layers": "all", "parts": parts}
    run = make_run({"name": "lora", "init": str(tiny_family(family)), "adapter": adapter}, CAPTIONED, steps=6)
    assert train(run) == 0
    base = load_folder(tiny_family(family))
    for name in ("run.safetensors", "pytorch_lora_weights.safetensors"):
        read = read_lora(tmp_path / "run" / "model" / name, base)
        assert not read.report.unmatched and set(read.updates) == set(parts)


def test_one_text_encoder_of_two_has_its_own_name_in_kohyas_keys(tiny_family, make_run, tmp_path):
    for part, prefix in (("text_encoder", "lora_te1_"), ("text_encoder_2", "lora_te2_")):
        objective = {"name": "lora", "init": str(tiny_family("sdxl")), "adapter": {"rank": 2, "parts": [part]}}
        run = make_run(objective, CAPTIONED, steps=2, output=str(tmp_path / part))
        made = prepared(run)
        made.export(tmp_path, averaged=False)
        keys = open_file(tmp_path / f"{part}.safetensors")[0]
        assert keys and all(key.startswith(prefix) for key in keys)


def test_the_sizes_are_those_of_the_pictures(tiny_family, make_run, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, size in (("wide", (101, 40)), ("tall", (48, 64)), ("small", (20, 20))):
        Image.new("RGB", size, "red").save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(name)
    data = {"path": str(folder), "where": {}, "captions": ["text"]}
    built = prepared(make_run({"name": "unet", "init": str(tiny_family("sdxl"))}, data, precision="bfloat16"))
    batch = next(built.batches([[0, 1, 2]]))
    found = dict(zip(batch.captions, built.player.held[1](batch).size_ids.tolist(), strict=True))
    assert found == {  # height and width as stored; the corner in pixels of the scaled picture
        "wide": [40, 101, 0, 24, 32, 32],
        "tall": [64, 48, 5, 0, 32, 32],
        "small": [20, 20, 0, 0, 32, 32],
    }
    assert built.player.held[1](batch).size_ids.dtype == torch.float32
    padded = prepared(make_run({"name": "unet", "init": str(tiny_family("sdxl"))}, {**data, "fit": "pad"}))
    assert all(row[2:4] == [0, 0] for row in next(padded.batches([[0, 1, 2]])).size_ids.tolist())


def test_captions_of_two_text_encoders_are_cached_with_their_pooled_vectors(tiny_family, make_run):
    made = {}
    for room in (0, 2**30):
        objective = {"name": "unet", "init": str(tiny_family("sdxl")), "text_cache_bytes": room}
        built = prepared(make_run(objective, {"captions": ["text"], "caption_dropout": 0.5}))
        made[room] = [built.player.held[1](next(built.batches([list(range(4 * k, 4 * k + 4))]))) for k in range(2)]
    for cached, computed in zip(made[2**30], made[0], strict=True):
        for name in ("context", "pooled"):
            torch.testing.assert_close(getattr(cached, name), getattr(computed, name), rtol=1e-5, atol=1e-6)
    batch = next(built.batches([list(range(8))]))
    cond = built.player.held[1](batch)
    dropped = torch.tensor([not caption for caption in batch.captions])
    assert 0 < dropped.sum() < 8
    for states in (cond.context, cond.pooled):  # SDXL is guided against zeros
        assert torch.equal(states.flatten(1).abs().sum(1) == 0, dropped)


def test_an_inpainting_unet_reads_a_drawn_mask_and_the_picture_around_it(tiny_family, make_run):
    built = prepared(make_run({"name": "unet", "init": str(tiny_family("sd1_inpaint"))}, CAPTIONED))
    assert built.player.held[0].cached  # latents are kept, pixels are read for the mask
    batch = next(built.batches([list(range(8))]))
    concat = built.player.held[1](batch).concat
    vae = built.components.autoencoder
    assert concat.shape == (8, 5, 8, 8)
    masks = concat[:, :1]
    assert set(masks.unique().tolist()) == {0.0, 1.0} and 0.1 < masks.mean() < 0.95
    whole = masks.flatten(1).all(1)
    with torch.no_grad():
        grey = vae.to_latents(torch.zeros(1, 3, 32, 32))
    for k in range(8):
        assert torch.allclose(concat[k, 1:], grey[0], atol=1e-5) == bool(whole[k])
    halves = [built.player.held[1](next(built.batches([rows]))).concat for rows in (range(4), range(4, 8))]
    torch.testing.assert_close(torch.cat(halves), concat, rtol=1e-5, atol=1e-5)
    again = built.player.held[1](next(built.batches([list(range(8, 16))]))).concat[:, :1]
    assert not torch.equal(again, masks)


def test_a_single_file_is_trained_by_its_own_markers(tiny_family, make_run, tmp_path):
    from dataclasses import replace

    from latent_diffusion.checkpoint.folder.scheduler_config import read_schedule

    base = load_folder(tiny_family("sd2_v"))
    config = {**base.scheduler_config, "_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}
    schedule, prediction = read_schedule(config)
    zero_snr = replace(base, schedule=schedule, prediction=prediction, scheduler_config=config)
    save_single_file(zero_snr, tmp_path / "model.safetensors")
    run = make_run({"name": "unet", "init": str(tmp_path / "model.safetensors")}, CAPTIONED, steps=6)
    assert train(run) == 0
    model = load_folder(tmp_path / "run" / "model")
    assert model.prediction is V and model.schedule.level(999).alpha == 0.0
    assert json.loads((run.output / "model" / "training.json").read_text())["config"]["objective"]["init"] == (
        "model.safetensors"
    )


def test_models_that_are_not_trained_are_refused(tiny_family, make_run):
    objective = {"name": "unet", "init": str(tiny_family("sdxl_refiner"))}
    with pytest.raises(ConfigError, match="refiner, which is not trained"):
        build_objective(make_run(objective, CAPTIONED))
    unet = {"sample_size": 8, "block_out_channels": [8, 16], "layers_per_block": 1, "cross_attention": [True, True]}
    unet |= {"num_attention_heads": [2, 2], "norm_num_groups": 8, "cross_attention_dim": 24}
    parts = {"vae": str(tiny_family("sd1") / "vae"), "text_encoder": str(tiny_family("sd1"))}
    for changes, words in (({"in_channels": 5}, "must read 4, or 9"), ({"added_width": 64}, "pooled text and sizes")):
        with pytest.raises(ConfigError, match=words):
            build_objective(make_run({"name": "unet", "parts": parts, "unet": unet | changes}, CAPTIONED))
