"""Checkpoints on the disk: what counts as one, what is taken when some are damaged, what a failing disk leaves."""

import errno
import json

import pytest
import torch

from latent_diffusion.checkpoint.files.atomic import sweep
from latent_diffusion.errors import CheckpointError, DivergedError, ResourceError
from latent_diffusion.training.state import training_state
from latent_diffusion.training.state.training_state import newest_state, save_state, set_aside_newer


def save(root, step, keep=3, value=None):
    weights = {"w": torch.full((3, 2), float(step if value is None else value))}
    return save_state(root, step, {"net": weights, "net.optimizer": {}}, {"seed": 1}, keep=keep)


def test_round_trip_and_order_by_number(tmp_path):
    for step in (9, 10, 100):
        save(tmp_path, step)
    state = newest_state(tmp_path)
    assert state is not None and state.step == 100 and state.values["seed"] == 1
    assert torch.equal(state.tensors("net")["w"], torch.full((3, 2), 100.0))
    assert state.tensors("net.optimizer") == {}


def test_keeps_the_last(tmp_path):
    for step in range(1, 6):
        save(tmp_path, step, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000004", "step-00000005"]


def test_none_was_ever_saved(tmp_path):
    assert newest_state(tmp_path / "absent") is None
    (tmp_path / ".tmp-step-00000003").mkdir()
    assert newest_state(tmp_path) is None
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def empty(folder):
    for path in folder.iterdir():
        path.unlink()


def cut(folder):
    path = folder / "net.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def flip(folder):
    path = folder / "net.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def lose(name):
    return lambda folder: (folder / name).unlink()


def mangle(folder):
    (folder / "manifest.json").write_text('{"format": 1, "files"')


DAMAGES = {
    "emptied": empty,
    "cut": cut,
    "one bit flipped": flip,
    "manifest lost": lose("manifest.json"),
    "state lost": lose("state.json"),
    "tensors lost": lose("net.safetensors"),
    "manifest cut": mangle,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_newest_is_passed_over_with_a_warning(tmp_path, caplog, damage):
    save(tmp_path, 1)
    damage(save(tmp_path, 2))
    state = newest_state(tmp_path)
    assert state is not None and state.step == 1
    assert "step-00000002 is damaged" in caplog.text


def test_only_damaged_ones_are_an_error_not_a_fresh_start(tmp_path):
    flip(save(tmp_path, 1))
    with pytest.raises(CheckpointError, match="none of its 1 checkpoints is intact"):
        newest_state(tmp_path)


def test_a_newer_format_is_refused_not_passed_over(tmp_path):
    save(tmp_path, 1)
    manifest = save(tmp_path, 2) / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 2}))
    with pytest.raises(CheckpointError, match="newer than this package"):
        newest_state(tmp_path)


def test_a_damaged_newer_one_does_not_push_out_sound_ones(tmp_path):
    save(tmp_path, 2)
    flip(save(tmp_path, 9))
    state = newest_state(tmp_path)
    set_aside_newer(tmp_path, state)
    save(tmp_path, 3, keep=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["damaged-step-00000009", "step-00000003"]


def test_a_damaged_folder_of_the_same_step_is_replaced(tmp_path):
    flip(save(tmp_path, 4))
    save(tmp_path, 4, value=7)
    state = newest_state(tmp_path)
    assert state is not None and state.tensors("net")["w"][0, 0] == 7
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000004"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("place", ["write_tensors", "write_json", "publish"])
def test_a_failing_disk_loses_nothing(tmp_path, monkeypatch, code, place):
    save(tmp_path, 1, keep=1)

    def fail(*args, **options):
        raise OSError(code, "the disk says no")

    with monkeypatch.context() as patched:
        patched.setattr(training_state, place, fail)
        with pytest.raises(ResourceError, match=r"the disk says no.*needed.*free"):
            save(tmp_path, 2, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert newest_state(tmp_path).step == 1


def test_a_full_disk_is_named_from_within_a_tensor_file(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("latent_diffusion.checkpoint.files.safetensors_file.save_file", full)
    with pytest.raises(ResourceError, match=r"\(No space left on device; .*free some space and run again"):
        save(tmp_path, 1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_never_writes_what_is_not_finite(tmp_path, bad):
    with pytest.raises(DivergedError, match="net holds a NaN or infinity in w"):
        save(tmp_path, 1, value=bad)
    assert not list(tmp_path.iterdir())
