"""How many functions of ours are on the stack while the U-Net computes: what a reader passes on the way to it."""

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import latent_diffusion
from latent_diffusion.cli.main import main
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.spacing import levels
from latent_diffusion.guidance.cfg import CFG
from latent_diffusion.models.unet import UNet
from latent_diffusion.samplers.ddim import DDIM

PACKAGE = str(Path(latent_diffusion.__file__).parent)
FROM_COMMAND_LINE, FROM_PIPELINE, FROM_SAMPLER = 9, 7, 4


def frames() -> list[str]:
    """Functions of the package on the stack, innermost first; torch's and the command line's library not counted."""
    found, frame = [], sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            found.append(f"{Path(frame.f_code.co_filename).relative_to(PACKAGE)}: {frame.f_code.co_qualname}")
        frame = frame.f_back
    return found


@pytest.fixture
def stacks():
    """What was on the stack each time a part of the U-Net was called by `UNet.forward` itself."""
    seen: list[list[str]] = []

    def look(module, inputs):
        found = frames()
        if found and found[0] == f"models/unet.py: {UNet.forward.__qualname__}":
            seen.append(found)

    handle = torch.nn.modules.module.register_module_forward_pre_hook(look)
    yield seen
    handle.remove()


def check(stacks, most):
    assert stacks, "the U-Net was not called"
    longest = max(stacks, key=len)
    assert len(longest) <= most, "\n".join(longest)


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "a cat"],
        ["img2img", "a cat", "--image", "picture.png"],
        ["inpaint", "a cat", "--image", "picture.png", "--mask", "picture.png"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_from_the_command_line(stacks, tiny_folder, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), "white").save("picture.png")
    code = main([*arguments, "--model", str(tiny_folder), "--steps", "2", "--device", "cpu", "--output", "out.png"])
    assert code == 0
    check(stacks, FROM_COMMAND_LINE)


def test_from_the_pipeline(stacks, tiny_pipeline):
    tiny_pipeline("a cat", num_inference_steps=2)
    check(stacks, FROM_PIPELINE)


@torch.no_grad()
def test_from_the_sampler(stacks, tiny_pipeline):
    parts, denoiser = tiny_pipeline.components, tiny_pipeline.denoiser
    prompt, negative = (parts.text_encoder([text]) for text in ("a cat", ""))
    denoise = CFG(7.5).bind(denoiser, prompt, negative)
    x = torch.randn(1, parts.unet.config.in_channels, 8, 8)
    for _ in DDIM()(denoise, x, levels(parts.schedule, "leading", 2), NoiseSource([0])):
        pass
    check(stacks, FROM_SAMPLER)
