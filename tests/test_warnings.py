"""A warning names the line outside the package that caused it, however many of our functions lie between."""

import contextlib

import pytest
import torch
from PIL import Image

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.errors import LatentDiffusionWarning, warn


@contextlib.contextmanager
def surrounded():
    yield


def picture(colour):
    return Image.new("RGB", (16, 16), colour)


@pytest.mark.parametrize(
    "cause",
    [
        lambda pipe: warn("directly"),
        lambda pipe: torch.no_grad()(lambda: warn("through a decorator of torch"))(),
        lambda pipe: surrounded()(lambda: warn("through a decorator of contextlib"))(),
        lambda pipe: LatentDiffusionPipeline(pipe.components, device="cpu", offload=True),
        lambda pipe: pipe.inpaint("a", image=picture("red"), mask_image=picture("black"), num_inference_steps=1),
        lambda pipe: pipe.image_to_image("a", image=picture("red"), strength=0.0, num_inference_steps=1),
        lambda pipe: pipe("a, " * 100, num_inference_steps=1, long_prompt="truncate"),
    ],
)
def test_a_warning_names_the_callers_line(tiny_pipeline, cause):
    with pytest.warns(LatentDiffusionWarning) as found:
        cause(tiny_pipeline)
    assert {warning.filename for warning in found} == {__file__}
