"""The documented command: its messages, what it records, and what it refuses, in words."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from latent_diffusion.checkpoint.load import load_model
from latent_diffusion.errors import CheckpointError, ConfigError
from latent_diffusion.training.run import train

ROOT = Path(__file__).parents[3]


def start(*command):
    """Run a command as from a terminal; return its exit code and output."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "TORCHELASTIC", "RANK", "WORLD"))}
    done = subprocess.run(
        [sys.executable, *command], env={**env, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stdout + done.stderr


def test_the_documented_commands_report_start_end_and_repetition(tiny_folder, pictures, tmp_path):
    config = {
        "output": str(tmp_path / "run"), "objective": {"name": "unet", "init": str(tiny_folder)}, "steps": 1,
        "batch_size": 1, "data": {"path": str(pictures), "size": 32}, "precision": "auto",
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    code, first = start("-m", "latent_diffusion", "train", str(tmp_path / "run.yaml"))
    assert code == 0 and "processes 1 (no launcher)" in first and "finished: the model is in" in first
    assert "precision: " in first and "since" in first
    code, second = start("-m", "latent_diffusion.train", str(tmp_path / "run.yaml"))
    assert code == 0 and "is finished: 1 steps" in second


def test_the_record_of_a_model_names_no_folder_of_the_machine(tiny_folder, make_run, pictures, tmp_path):
    assert train(make_run({"name": "unet", "init": str(tiny_folder)}, {"captions": ["text"]}, steps=1)) == 0
    record = (tmp_path / "run" / "model" / "training.json").read_text()
    assert str(tmp_path) not in record and str(tiny_folder.parent) not in record and str(pictures) not in record
    config = json.loads(record)["config"]
    assert (config["data"]["path"], config["objective"]["init"]) == (pictures.name, "tiny")
    assert config["data"]["where"] == {"split": "train"} and "output" not in config


def test_changed_data_is_refused_in_words(tiny_folder, make_run, pictures, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    section = {"path": str(data), "captions": ["text"]}
    assert train(make_run({"name": "unet", "init": str(tiny_folder)}, section, steps=1)) == 0
    Image.new("RGB", (32, 32), "pink").save(data / "0.png")
    with pytest.raises(ConfigError, match=r"data\.path: a picture, a caption or the choice of pictures has changed"):
        train(make_run({"name": "unet", "init": str(tiny_folder)}, section, steps=2))


def test_a_name_of_the_hub_gets_the_command_that_downloads_it():
    with pytest.raises(CheckpointError, match="hf download someone/some-model --local-dir"):
        load_model("someone/some-model")
    with pytest.raises(CheckpointError) as caught:
        load_model("models/absent.safetensors")
    assert "hf download" not in str(caught.value)
