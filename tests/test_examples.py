"""The examples run, and do what they say; each is under 40 lines, docstring and all."""

import runpy
from pathlib import Path

import pytest
import torch

from latent_diffusion.checkpoint.load import load_model
from latent_diffusion.diffusion.loss import DiffusionLoss

FOLDER = Path(__file__).parent.parent / "examples"


def example(name):
    return runpy.run_path(str(FOLDER / f"{name}.py"))[name]


def test_sample():
    sample = example("sample")
    first = sample("Red apple, flat style emoji", steps=3)
    assert first.shape == (1, 4, 16, 16) and first.isfinite().all()
    assert torch.equal(first, sample("Red apple, flat style emoji", steps=3))
    assert not torch.equal(first, sample("Red apple, flat style emoji", steps=3, seed=1))


def test_inpaint():
    known, mask = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1.0
    latents = example("inpaint")(known, mask, "Red apple, flat style emoji", steps=3)
    outside = mask.expand_as(latents) == 0
    assert torch.equal(latents[outside], known[outside])
    assert (latents - known).abs()[~outside].mean() > 0.1


def test_train_step():
    """Steps on the same latents with the same times and noise lower the loss."""
    train_step, model = example("train_step"), load_model("emoji")
    loss = DiffusionLoss(model.schedule, model.prediction)
    optimizer = torch.optim.AdamW(model.unet.parameters(), lr=1e-3)
    with torch.no_grad():
        states = model.text_encoder(["Red apple, flat style emoji"] * 2)
    x0, found = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)), []
    for _ in range(4):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            found.append(train_step(model.unet, loss, optimizer, x0, states))
    assert found[-1] < found[0]


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda file: file.name)
def test_is_short(file):
    assert len(file.read_text().splitlines()) <= 40
