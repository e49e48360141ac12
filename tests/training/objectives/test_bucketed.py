"""Runs on pictures of every shape: killed and continued, on one process or two; every picture has the same weight."""

import real
import torch
import yaml
from PIL import Image
from processes import assert_equal_states, losses_of, train, train_together

from latent_diffusion.training.run import build_objective
from latent_diffusion.training.state.launch import build_accelerator
from latent_diffusion.training.trainer import Trainer

SIZES = [(64, 64)] * 5 + [(96, 48)] * 4 + [(40, 80)] * 2


def config(tmp_path, model) -> str:
    """Eleven pictures in three sizes; the last batch of two of them has one picture and two."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for k, size in enumerate(SIZES):
        Image.new("RGB", size, (k * 20, 255 - k * 20, 128)).save(folder / f"{k:02}.png")
        (folder / f"{k:02}.txt").write_text("red disc" if k % 2 else "red, " * 60 + "disc")  # one chunk, and two
    data = {"path": str(folder), "size": 32, "buckets": {"step": 16, "min_side": 16}, "flip": True}
    run = {"objective": {"name": "unet", "init": str(model)}, "data": data, "steps": 8, "batch_size": 4}
    run |= {"threads": 1, "log_every": 1, "checkpoint": {"every": 3}, "fast": False}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    return str(tmp_path / "run.yaml")


def test_a_killed_run_continues_bit_for_bit_and_two_processes_train_alike(tiny_folder, tmp_path):
    file = config(tmp_path, tiny_folder)
    one, killed, two = (tmp_path / name for name in ("one", "killed", "two"))
    assert train(one, file, run=real.run) == 0
    assert train(killed, file, run=real.run, fault=("before the rename", 2)) < 0
    assert train(killed, file, run=real.run) == 0
    assert_equal_states(killed, one)
    assert train_together(two, file, run=real.run) == [0, 0]
    ones, twos = losses_of(one), losses_of(two)
    assert len(ones) == len(twos) == 8
    for a, b in zip(ones, twos, strict=True):
        assert abs(a["unet/loss"] - b["unet/loss"]) <= 1e-5 * abs(a["unet/loss"])


KOHYA = """
[[datasets]]
resolution = 32
enable_bucket = true
bucket_reso_steps = 16
min_bucket_reso = 16
max_bucket_reso = 64
[[datasets.subsets]]
image_dir = "{root}/photos"
caption_extension = ".txt"
num_repeats = 2
flip_aug = true
shuffle_caption = true
keep_tokens = 1
"""


def test_a_data_set_of_kohyas_scripts_trains_as_the_same_set_written_out(tiny_folder, make_run, tmp_path):
    config(tmp_path, tiny_folder)
    (tmp_path / "set.toml").write_text(KOHYA.format(root=tmp_path))
    written = {
        "path": f"{tmp_path}/photos", "size": 32, "weight": 2, "flip": True, "caption_ending": ".txt", "where": {},
        "buckets": {"step": 16, "min_side": 16}, "wording": {"lines": "first", "shuffle": True, "keep": 1},
    }  # fmt: skip
    made = []
    for data in (written, {"path": f"{tmp_path}/set.toml", "size": 32, "where": {}}):
        run = make_run({"name": "unet", "init": str(tiny_folder)}, data, steps=4)
        torch.manual_seed(run.seed)
        trainer = Trainer(build_objective(run), run, build_accelerator())
        trainer.fit()
        made.append(torch.cat([p.detach().flatten() for p in trainer.objective.components.unet.parameters()]))
    assert torch.equal(*made)
