"""Runs on pictures of every shape: killed and continued, on one process or two; every picture has the same weight."""

import real
import yaml
from PIL import Image
from processes import assert_equal_states, losses_of, train, train_together

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
