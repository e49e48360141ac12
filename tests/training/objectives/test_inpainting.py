"""Inpainting U-Nets: made of others, trained on drawn and on own masks, measured in the holes."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from PIL import Image
from processes import state_of

from latent_diffusion.adapters.lora_file import read_lora
from latent_diffusion.checkpoint.folder.diffusers_folder import load_folder
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.training.losses.drawn_masks import DrawnMasks, InpaintingSettings
from latent_diffusion.training.run import build_objective, train
from latent_diffusion.training.state.launch import build_accelerator
from latent_diffusion.training.trainer import Trainer

CAPTIONED = {"captions": ["text"], "flip": True}


@pytest.mark.parametrize("shape", ["box", "stroke", "border"])
def test_masks_of_each_shape(shape):
    masks = DrawnMasks(InpaintingSettings(shapes=[shape], whole=0.0), seed=3)
    drawn = [masks.drawn(number, 48, 64) for number in range(40)]
    shares = [float(mask.mean()) for mask in drawn]
    assert all(set(mask.unique().tolist()) == {0.0, 1.0} and mask.shape == (48, 64) for mask in drawn)
    assert len(set(shares)) > 30 and min(shares) < 0.2 < max(shares) < 0.95
    assert all(torch.equal(mask, masks.drawn(number, 48, 64)) for number, mask in enumerate(drawn[:5]))
    edges = [bool(mask[0].all() or mask[-1].all() or mask[:, 0].all() or mask[:, -1].all()) for mask in drawn]
    assert all(edges) if shape == "border" else not all(edges)


def test_a_quarter_is_repainted_whole():
    masks = DrawnMasks(InpaintingSettings(), seed=0)
    whole = sum(bool(masks.drawn(number, 16, 16).all()) for number in range(400))
    assert 70 < whole < 130


def test_the_widened_unet_draws_what_the_base_draws_bit_for_bit(tiny_folder, make_run):
    run = make_run({"name": "unet", "init": str(tiny_folder), "inpainting": {}}, CAPTIONED)
    wide, base = build_objective(run).components, load_folder(tiny_folder)
    assert wide.for_inpainting and wide.unet.config.in_channels == 9 and not base.for_inpainting
    draw = torch.Generator().manual_seed(0)
    x, extra = torch.randn(3, 4, 8, 8, generator=draw), torch.randn(3, 5, 8, 8, generator=draw)
    t = torch.tensor([3.0, 400.0, 999.0])
    with torch.no_grad():
        states = base.text_encoder(["a red disc", "a blue disc", ""]).context
        for form in (torch.contiguous_format, torch.channels_last):
            for unet in (wide.unet, base.unet):
                unet.eval().to(memory_format=form)
            ours = wide.unet(x, t, wide.unet.project(Conditioning(states, concat=extra)))
            assert torch.equal(ours, base.unet(x, t, base.unet.project(Conditioning(states))))


def test_a_run_makes_an_inpainting_model(tiny_folder, make_run, tmp_path):
    from latent_diffusion import LatentDiffusionPipeline

    sample = {"every": 6, "prompts": ["a red disc", "a blue disc"], "steps": 2}
    objective = {"name": "unet", "init": str(tiny_folder), "inpainting": {}, "validation": {"split": "val"}}
    run = make_run(objective, CAPTIONED, steps=6, sample=sample)
    assert train(run) == 0
    lines = [json.loads(line) for line in (run.output / "log.jsonl").read_text().splitlines()]
    figures = {key: value for line in lines for key, value in line.items()}
    assert figures["validation_loss_hole"] > 0 and figures["validation_loss_hole"] != figures["validation_loss"]
    model = load_folder(run.output / "model")
    assert model.for_inpainting and model.unet.conv_in.weight[:, 4:].abs().max() > 0
    pipe = LatentDiffusionPipeline.from_pretrained(str(run.output / "model"))
    picture, mask = Image.new("RGB", (32, 32), "red"), Image.new("L", (32, 32))
    mask.paste(255, (8, 8, 20, 24))
    made = np.array(pipe.inpaint("a red disc", image=picture, mask_image=mask, num_inference_steps=2, seed=0).images[0])
    outside = np.array(mask) == 0
    assert (made[outside] == np.array(picture)[outside]).all() and (made[~outside] != [255, 0, 0]).any()


def test_sample_pictures_repaint_held_out_pictures(tiny_folder, make_run):
    sample = {"every": 6, "prompts": ["a red disc", "a blue disc"], "steps": 2}
    objective = {"name": "unet", "init": str(tiny_folder), "inpainting": {}, "validation": {"split": "val"}}
    run = make_run(objective, CAPTIONED, sample=sample)
    torch.manual_seed(0)
    made = Trainer(build_objective(run), run, build_accelerator()).objective
    from latent_diffusion.training.objective import Share

    drawn = made.draw(Share())
    assert len(drawn) == 2
    for k, picture in enumerate(drawn):
        pixels, (image, hole) = torch.from_numpy(np.array(picture)).permute(2, 0, 1), made.sheet.scenes[k]
        assert torch.equal(image, made.held_out.image(k).float() / 127.5 - 1)
        kept = (hole == 0).expand(3, -1, -1)
        assert torch.equal(pixels[kept], made.held_out.image(k)[kept]) and kept.any()
        assert not torch.equal(pixels, made.held_out.image(k))


def test_own_masks_and_the_cache(pictures, tiny_folder, make_run, tmp_path):
    """The mask file beside a picture is the hole; cached and uncached latents make the same losses."""
    import shutil

    folder = tmp_path / "discs"
    shutil.copytree(pictures, folder)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    mask = np.zeros((32, 32), np.uint8)
    mask[:, :10] = 255
    Image.fromarray(mask).save(folder / "left.png")
    rows = [row | {"mask_file": "left.png"} for row in rows]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    losses = []
    for most in (2**30, 0):
        objective = {"name": "unet", "init": str(tiny_folder), "inpainting": {"own": 1.0}, "latent_cache_bytes": most}
        run = make_run(objective, {**CAPTIONED, "path": str(folder), "where": {}})
        torch.manual_seed(0)
        made = Trainer(build_objective(run), run, build_accelerator()).objective
        assert made.player.held[0].cached == (most > 0) and "objective.inpainting" in made.fingerprint()
        batch = next(made.batches([list(range(6))]))
        masks = made.masks(batch)
        for k, flipped in enumerate(batch.flipped):
            wanted = torch.from_numpy(mask > 0).float()
            assert torch.equal(masks[k, 0], wanted.flip(-1) if flipped else wanted)
        with torch.no_grad():
            losses.append(made.player(batch, 0).total)
    assert len(set(batch.flipped)) == 2 and torch.equal(*losses)


def test_an_inpainting_adapter_of_a_plain_model(tiny_folder, make_run, tmp_path, capsys):
    """It starts as the plain network bit for bit; its files hold what was trained, for this package and diffusers."""
    from latent_diffusion import LatentDiffusionPipeline

    adapter = {"rank": 2, "layers": ["attn2"], "rules": [{"match": "conv_in", "learning_rate": 0.01}]}
    objective = {"name": "lora", "init": str(tiny_folder), "inpainting": {}, "adapter": adapter}
    run = make_run(objective, CAPTIONED, steps=3, output=str(tmp_path / "hole"))
    built, base = build_objective(run).components, load_folder(tiny_folder)
    draw = torch.Generator().manual_seed(0)
    x, extra = torch.randn(2, 4, 8, 8, generator=draw), torch.randn(2, 5, 8, 8, generator=draw)
    t, states = torch.tensor([3.0, 900.0]), base.text_encoder(["a red disc", ""]).context
    with torch.no_grad():
        ours = built.unet(x, t, built.unet.project(Conditioning(states, concat=extra)))
        assert torch.equal(ours, base.unet(x, t, base.unet.project(Conditioning(states))))
    assert train(run) == 0
    readers = "this package and by diffusers" if importlib.util.find_spec("peft") else "this package"
    assert (
        f"pytorch_lora_weights.safetensors: gives the trained outputs, read back by {readers}"
        in capsys.readouterr().err
    )
    files = [run.output / "model" / name for name in ("hole.safetensors", "pytorch_lora_weights.safetensors")]
    (trained,) = [tensor for name, tensor in state_of(run.output).items() if name.endswith("conv_in.diff")]
    for file in files:
        read = read_lora(file, base)
        assert read.report.inpainting and "conv_in" in read.updates["unet"] and not read.report.unmatched
        change = read.updates["unet"]["conv_in"].weight.matrix(base.unet.conv_in.weight.detach().flatten(1))
        assert torch.equal(change, trained.flatten(1)) and change[:, 4 * 9 :].abs().max() > 0
        on = make_run({**objective, "adapter": {"start": str(file)}}, CAPTIONED)
        assert torch.equal(build_objective(on).adapter.changes["unet"]["conv_in"].diff, trained)
    pipe = LatentDiffusionPipeline.from_pretrained(str(tiny_folder))
    pipe.load_lora_weights(files[0])
    picture, mask = Image.new("RGB", (32, 32), "red"), Image.new("L", (32, 32))
    mask.paste(255, (8, 8, 20, 24))
    made = np.array(pipe.inpaint("a disc", image=picture, mask_image=mask, num_inference_steps=2, seed=0).images[0])
    outside = np.array(mask) == 0
    assert (made[outside] == np.array(picture)[outside]).all() and (made[~outside] != [255, 0, 0]).any()
