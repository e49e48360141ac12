"""A model saved over an older one: the name holds the old one or the new one, whole, whenever the process is killed."""

import os
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.files import atomic
from latent_diffusion.checkpoint.folder import diffusers_folder
from latent_diffusion.checkpoint.folder.diffusers_folder import load_folder, save_folder
from latent_diffusion.checkpoint.locate import locate_model
from latent_diffusion.checkpoint.prompt_forms import PromptForms
from latent_diffusion.cli.main import main
from latent_diffusion.errors import CheckpointError, ResourceError

EVENTS = {"open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree", "ctypes.call_function"}


@pytest.fixture
def old_and_new(tiny_folder, tmp_path) -> tuple[Components, Components]:
    """An older model in `model`, and one whose every part is another."""
    old, new = load_folder(tiny_folder), load_folder(tiny_folder)
    with torch.no_grad():
        for part in (new.unet, new.autoencoder, *(tower.model for tower in new.text_encoder.towers)):
            for weight in part.parameters():
                weight.add_(0.5)
    save_folder(old, tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("mine")
    return old, new


def fingerprint(model: Components) -> list[float]:
    parts = (model.unet, model.autoencoder, *(tower.model for tower in model.text_encoder.towers))
    return [sum(weight.double().sum().item() for weight in part.parameters()) for part in parts]


def killed(act, event: int) -> bool:
    """Run `act` in a child that is killed before its n-th change of the disk; return whether it got that far."""
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    count = 0

    def hook(name, arguments):
        nonlocal count
        if name in EVENTS and threading.current_thread() is threading.main_thread():
            count += 1
            if count == event:
                os.kill(os.getpid(), signal.SIGKILL)

    code = 1
    try:
        sys.addaudithook(hook)
        act()
        code = 0
    finally:
        os._exit(code)


def test_killed_at_every_moment(old_and_new, tmp_path):
    old, new = (fingerprint(model) for model in old_and_new)
    folder, event, seen = tmp_path / "model", 0, []
    while killed(lambda: save_folder(old_and_new[1], folder), event := event + 7):
        found = fingerprint(load_folder(folder))
        assert found in (old, new)
        assert (folder / "README.md").read_text() == "mine"
        seen.append(found == new)
        save_folder(old_and_new[0], folder)  # sweeps what was left
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    assert fingerprint(load_folder(folder)) == new
    assert len(seen) > 5 and seen[0] is False and seen[-1] is True


def test_a_part_that_cannot_be_written(old_and_new, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(diffusers_folder, "save_autoencoder", full)
    with pytest.raises(ResourceError, match="No space left"):
        save_folder(old_and_new[1], tmp_path / "model")
    assert fingerprint(load_folder(tmp_path / "model")) == fingerprint(old_and_new[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_nothing_of_the_older_model_is_inherited(old_and_new, tmp_path):
    folder, forms = tmp_path / "model", PromptForms({"a 3d render of": ("3d",)}, "a 3d render of", {"cat": "cat"})
    save_folder(replace(old_and_new[0], prompt_forms=forms), folder)
    (folder / "training.json").write_text("{}")
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"")
    save_folder(old_and_new[1], folder)
    assert load_folder(folder).prompt_forms is None
    assert not list(folder.rglob("*fp16*")) and not (folder / "training.json").exists()


def test_other_files_stay(old_and_new, tmp_path):
    folder = tmp_path / "model"
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.png").write_bytes(b"a")
    (folder / "link").symlink_to("README.md")
    folder.chmod(0o700)
    save_folder(old_and_new[1], folder)
    assert (folder / "README.md").read_text() == "mine"
    assert (folder / "pictures" / "a.png").read_bytes() == b"a"
    assert os.readlink(folder / "link") == "README.md"
    assert folder.stat().st_mode & 0o777 == 0o700


def test_through_a_link(old_and_new, tmp_path):
    (tmp_path / "link").symlink_to("model")
    save_folder(old_and_new[1], tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert fingerprint(load_folder(tmp_path / "model")) == fingerprint(old_and_new[1])


def test_the_working_folder(old_and_new, tmp_path, monkeypatch):
    """Another folder cannot take its place; a first model is written into it, an older one is not touched."""
    monkeypatch.chdir(tmp_path / "model")
    with pytest.raises(ResourceError, match="one step"):
        save_folder(old_and_new[1], ".")
    assert fingerprint(load_folder(".")) == fingerprint(old_and_new[0])
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    save_folder(old_and_new[1], ".")
    assert fingerprint(load_folder(".")) == fingerprint(old_and_new[1])
    assert not list(Path(".").glob(".tmp-*"))


def test_a_system_that_cannot_exchange_names(old_and_new, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    save_folder(old_and_new[1], folder)
    assert fingerprint(load_folder(folder)) == fingerprint(old_and_new[1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_model_moved_aside_is_named(old_and_new, tmp_path):
    folder = tmp_path / "model"
    folder.rename(atomic.moved_aside(folder))
    with pytest.raises(CheckpointError, match=r"rename '.*\.tmp-old-model' to restore it"):
        locate_model(folder)


def test_the_older_one_comes_back_when_the_second_rename_fails(old_and_new, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    rename = Path.rename

    def fails(path, target):
        if path.name == ".tmp-model":
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(ResourceError, match="Input/output"):
        save_folder(old_and_new[1], folder)
    assert fingerprint(load_folder(folder)) == fingerprint(old_and_new[0])


def test_convert_keeps_other_files(old_and_new, tmp_path, tiny_folder):
    assert main(["convert", str(tiny_folder), str(tmp_path / "model"), "--overwrite"]) == 0
    assert (tmp_path / "model" / "README.md").read_text() == "mine"
