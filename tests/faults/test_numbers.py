"""Every option that is a number, given numbers nobody means: one line with exit code 2, or a picture."""

import inspect
from typing import get_args

import pytest
from PIL import Image

from latent_diffusion.cli.commands.generate import generate
from latent_diffusion.cli.commands.img2img import img2img
from latent_diffusion.cli.commands.inpaint import inpaint
from latent_diffusion.cli.commands.outpaint import outpaint
from latent_diffusion.cli.main import main

NUMBERS = ("nan", "inf", "-inf", "1e308", "1e-320", "-1", "0", "9" * 400)
COMMANDS = {"generate": generate, "img2img": img2img, "inpaint": inpaint, "outpaint": outpaint}


def numeric_options():
    """Return command and option of every int and float that a drawing command takes; a shared one of one command."""
    found = {}
    for command, function in COMMANDS.items():
        for name, parameter in inspect.signature(function).parameters.items():
            kind = get_args(parameter.annotation)[0]
            if {int, float} & {kind, *get_args(kind)} and name != "seed":
                found.setdefault(name, command)
    return [(command, f"--{name.replace('_', '-')}") for name, command in found.items()]


@pytest.fixture
def refuses(tiny_pipeline, here, monkeypatch, capsys):
    """Run a command on the tiny model; return its exit code and what it wrote on stderr."""
    monkeypatch.setattr("latent_diffusion.cli.picture_files.load_pipeline", lambda *_, **__: tiny_pipeline)
    Image.new("RGB", (16, 16), (200, 30, 30)).save("a.png")
    Image.new("L", (16, 16), 255).save("m.png")

    def run(command, *more):
        inputs = {"generate": [], "inpaint": ["--image", "a.png", "--mask", "m.png"]}
        inputs = inputs.get(command, ["--image", "a.png"]) + (["--right", "8"] if command == "outpaint" else [])
        quick = [] if "--steps" in more else ["--steps", "2"]
        code = main([command, "a cat", "--seed", "1", *quick, *inputs, *more])
        return code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(("command", "option"), numeric_options())
def test_no_number_is_a_bug_in_this_package(refuses, command, option):
    needed = ["--hires", "2"] if option.startswith("--hires-") else []
    for number in NUMBERS:
        code, told = refuses(command, *needed, f"{option}={number}")
        told = [line for line in told.splitlines() if not line.startswith("warning")]
        assert code in (0, 2) and len(told) == (code == 2), (number, code, told)
        if number in ("nan", "inf", "-inf"):
            assert code == 2, (number, told)
