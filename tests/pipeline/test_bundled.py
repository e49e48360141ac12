"""The model inside the package: offline, small, the same picture in diffusers, and a red apple that is red."""

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import latent_diffusion
from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.evaluation.pictures import read_pictures

BUNDLED = Path(latent_diffusion.__file__).parent / "bundled" / "emoji"
PICTURES = Path(__file__).parents[2] / "assets" / "emoji-128.zip"
APPLE = "a 3d render of a red apple"


@pytest.fixture(scope="module")
def emoji():
    return LatentDiffusionPipeline.from_pretrained("emoji", device="cpu", dtype="float32")


def draw(pipe):
    """A picture as diffusers would be asked for it, as an array (H, W, 3) in [0, 1]."""
    generator = torch.Generator().manual_seed(3)
    return pipe(APPLE, num_inference_steps=10, guidance_scale=4.0, generator=generator, output_type="np").images[0]


def test_package_data_is_small():
    assert sum(file.stat().st_size for file in BUNDLED.rglob("*") if file.is_file()) <= 40_000_000


def test_a_red_apple_is_red_on_white(emoji):
    picture = emoji(APPLE, seed=1, output_type="np").images[0]
    corner, middle = picture[:4, :4].mean((0, 1)), picture[26:46, 22:42].mean((0, 1))
    assert corner.min() > 0.9
    assert middle[0] > 0.6
    assert middle[0] > middle[1] + 0.3
    assert middle[0] > middle[2] + 0.3


def test_draws_without_a_network(emoji, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    pipe = LatentDiffusionPipeline.from_pretrained("emoji", device="cpu", dtype="float32")
    assert np.array_equal(draw(pipe), draw(emoji))


def test_diffusers_draws_our_picture(emoji, tmp_path):
    from diffusers import StableDiffusionPipeline

    emoji.save_pretrained(tmp_path / "emoji")
    saved = StableDiffusionPipeline.from_pretrained(tmp_path / "emoji", local_files_only=True)
    ours = draw(emoji)
    for theirs in (saved, emoji.to_diffusers()):
        theirs.set_progress_bar_config(disable=True)
        assert np.abs(draw(theirs) - ours).max() < 2e-3  # of a range of 1: under one step of 8 bits


def test_autoencoder_gives_back_held_out_pictures(emoji):
    pictures = read_pictures(PICTURES)
    rows = [row for row in pictures.rows if row.split in ("val", "test_comp")][::12]
    real = pictures.load(rows, 64)
    autoencoder = emoji.components.autoencoder
    with torch.no_grad():
        made = autoencoder.to_images(autoencoder.to_latents(real)).clamp(-1, 1)
    error = (made - real).square().flatten(1).mean(1)
    assert (10 * torch.log10(4 / error)).mean() >= 27  # dB


def test_drawing_imports_no_more_than_it_needs():
    """Each of these takes longer to import than the picture to draw."""
    code = """
import sys
import torch
torch.empty(1, device="meta").uniform_()  # torch 2.10 imports sympy for it
alone = set(sys.modules)
from latent_diffusion import LatentDiffusionPipeline
LatentDiffusionPipeline.from_pretrained("emoji", device="cpu")("a red apple", num_inference_steps=1)
heavy = {"transformers", "diffusers", "torchvision", "open_clip", "accelerate", "scipy", "sympy", "torch._dynamo"}
sys.exit(f"imported {heavy}" if (heavy := heavy & (set(sys.modules) - alone)) else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
