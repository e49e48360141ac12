"""Launchers: their options, variables and messages, in processes as people start them."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import toy

from latent_diffusion.config import RunConfig
from latent_diffusion.errors import ConfigError
from latent_diffusion.runtime import precision
from latent_diffusion.runtime.precision import bfloat16_is_fast
from latent_diffusion.train import main
from latent_diffusion.training import run as run_module
from latent_diffusion.training.state import launch
from latent_diffusion.training.state.launch import build_accelerator, choose_precision, warn_of_launcher_options

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def start(*command, **variables):
    """Run a command without the launcher's variables of this process; return its exit code and output."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "TORCHELASTIC", "RANK", "WORLD"))}
    env |= {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", **variables}
    done = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def warnings_of(monkeypatch, caplog):
    """Return a function that gives the warnings of a call."""

    def call(function, *arguments):
        monkeypatch.setattr(logging.getLogger("latent_diffusion"), "propagate", True)
        logging.getLogger("latent_diffusion").setLevel(logging.INFO)
        caplog.clear()
        result = function(*arguments)
        return result, caplog.text

    return call


def run_of(tmp_path, **values):
    return RunConfig(output=tmp_path, objective={"name": "toy"}, data={}, steps=4, batch_size=4, **values)


def test_auto_is_what_the_processor_computes_in(tmp_path, monkeypatch, warnings_of):
    accelerator = build_accelerator()
    for fast, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(launch, "bfloat16_is_fast", lambda device, fast=fast: fast)
        run, said = warnings_of(choose_precision, run_of(tmp_path, precision="auto"), None, accelerator)
        assert run.precision == expected and f"precision: {expected}, since" in said
    run, said = warnings_of(choose_precision, run_of(tmp_path, precision="bfloat16"), None, accelerator)
    assert run.precision == "bfloat16" and "has no bfloat16 arithmetic" in said
    factor = re.search(r"a convolution takes ([0-9.]+) times as long as in float32; use auto", said)
    assert factor is not None and float(factor[1]) > 0


def test_a_run_that_continues_keeps_its_precision(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "find", lambda package, name: toy.ToyObjective)
    for fast in (False, True):  # as on another machine
        monkeypatch.setattr(launch, "bfloat16_is_fast", lambda device, fast=fast: fast)
        file = tmp_path / "run.yaml"
        file.write_text(toy.config(tmp_path / "run"))
        steps = 8 if fast else 4
        assert main([str(file), "precision=auto", "decay=constant", f"steps={steps}"]) == 0
        assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["precision"] == "float32"


def test_processors_without_bfloat16(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert not bfloat16_is_fast(CPU)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    monkeypatch.setattr(precision.platform, "machine", lambda: "x86_64")
    for bfloat16, tiles in ((False, False), (True, False), (False, True)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda found=bfloat16: found)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda found=tiles: found)
        assert bfloat16_is_fast(CPU) == (bfloat16 or tiles)


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM"])
def test_other_ways_to_share_work_are_refused_before_accelerate_tries_them(monkeypatch, variable):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(ConfigError, match="does not support"):
        build_accelerator()


def test_processes_that_would_each_train_alone_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match="ACCELERATE_USE_CPU=true"):
        build_accelerator()


def test_launcher_options_without_effect_are_named(tmp_path, monkeypatch, warnings_of):
    accelerator = build_accelerator()
    words = [
        "python",
        "-m",
        "accelerate.commands.launch",
        "--num-processes",
        "2",
        "--gradient_accumulation_steps=4",
        "-m",
        "train",
    ]
    monkeypatch.setattr(launch.psutil, "Process", lambda pid: type("Parent", (), {"cmdline": lambda self: words})())
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    _, said = warnings_of(warn_of_launcher_options, run_of(tmp_path), accelerator)
    for words_of in ("--num_processes 2", "--gradient_accumulation_steps 4", "--mixed_precision fp16", "inductor"):
        assert words_of in said
    words[:] = ["python", "-m", "accelerate.commands.launch", "--num_processes", "1", "-m", "train"]
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")
    _, said = warnings_of(warn_of_launcher_options, run_of(tmp_path, precision="bfloat16"), accelerator)
    assert "has no effect" not in said and "num_processes" not in said


ONE, TWO = "compute_environment: LOCAL_MACHINE\n", "num_processes: 2\n"


@pytest.mark.parametrize(
    "variables, words, processes",
    [
        ({}, "bash", "no launcher"),
        ({"TORCHELASTIC_RUN_ID": "1"}, "torchrun -m train", "torchrun"),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, "accelerate launch -m train", "num_processes of {default}"),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, "accelerate launch --config_file {named} -m train",
         "accelerate launch, since {named} has no num_processes"),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, "accelerate launch --config_file={default} --num-processes 1 -m train",
         "--num_processes of accelerate launch"),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, "accelerate launch --cpu -m train",
         "accelerate launch without a configuration file"),
    ],
)  # fmt: skip
def test_every_value_of_the_launch_has_its_source(tmp_path, monkeypatch, capsys, variables, words, processes):
    files = {"default": tmp_path / "default.yaml", "named": tmp_path / "named.yaml"}
    files["default"].write_text(ONE + TWO)
    files["named"].write_text(ONE)
    parent = type("Parent", (), {"cmdline": lambda self: words.format(**files).split()})()
    monkeypatch.setattr(launch.psutil, "Process", lambda pid: parent)
    monkeypatch.setattr(launch, "default_config_file", str(files["default"]))
    for name in ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**variables, "ACCELERATE_USE_CPU": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(run_module, "find", lambda package, name: toy.ToyObjective)
    file = tmp_path / "run.yaml"
    file.write_text(toy.config(tmp_path / "run"))
    code = main([str(file), "steps=1", "warmup=0", "threads=1"])
    found = json.loads((tmp_path / "run" / "config.json").read_text())["launch"]
    assert code == 0 and {name: one["source"] for name, one in found.items()} == {
        "processes": processes.format(**files),
        "threads": "threads of the run",
        "device": "ACCELERATE_USE_CPU=true",
        "precision": "precision of the run",
        "accumulation": "accumulation of the run",
    }
    assert found["processes"]["value"] == 1 and found["threads"]["value"] == 1
    assert f"processes 1 ({processes.format(**files)}), threads 1 (threads of the run)" in capsys.readouterr().err


@pytest.mark.slow
def test_accelerate_launch_without_a_gpu_reports_once_what_is_wrong(tmp_path):
    config = ROOT / "configs" / "accelerate" / "cpu_two_processes.yaml"
    script = [str(Path(toy.__file__)), str(tmp_path / "run")]
    port = ["--main_process_port", "0"]
    command = ["-m", "accelerate.commands.launch", "--config_file", str(config), *port, *script]
    code, output = start(*command, ACCELERATE_USE_CPU="false")
    assert code != 0 and output.count("error: 2 processes were launched") == 1
    assert "ACCELERATE_USE_CPU=true" in output and "stop it, choose another output" not in output
