"""Previews of unfinished latents: the right size, the right colours, and the mistakes they answer."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.data.pictures.images import to_pil
from latent_diffusion.errors import CheckpointError, ConfigError
from latent_diffusion.pipeline.preview import LinearPreview


def array(pictures):
    return np.stack([np.asarray(picture, np.float64) for picture in pictures])


@pytest.fixture(scope="module")
def bundled():
    return LatentDiffusionPipeline.from_pretrained("emoji", device="cpu")


def test_linear_shows_the_colours_of_the_picture(bundled):
    """Pictures of coloured areas: the preview of their latents is near what the decoder makes of them."""
    autoencoder = bundled.components.autoencoder
    coarse = torch.rand(4, 3, 3, 3, generator=torch.Generator().manual_seed(9)) * 2 - 1
    images = F.interpolate(coarse, (64, 64), mode="bicubic").clamp(-1, 1)
    with torch.no_grad():
        latents = autoencoder.to_latents(images)
        decoded = array(to_pil(autoencoder.to_images(latents).clamp(-1, 1)))
    shown = array(bundled.preview("linear")(latents))
    assert shown.shape == decoded.shape
    assert np.corrcoef(shown.ravel(), decoded.ravel())[0, 1] > 0.8  # 0.85: four numbers a cell hold no more in a line


def test_the_linear_fit_is_the_least_squares_one(tiny_pipeline):
    """No other weight does better on what it was fitted on; two fits are the same."""
    with torch.no_grad():
        first, second = (LinearPreview.fit(tiny_pipeline.components.autoencoder) for _ in range(2))
    assert torch.equal(first.weight, second.weight) and torch.equal(first.bias, second.bias)
    channels = tiny_pipeline.components.autoencoder.config.latent_channels
    assert first.weight.shape == (3, channels) and first.bias.shape == (3,)


def test_previews_while_sampling(tiny_pipeline):
    preview, sizes = tiny_pipeline.preview("linear"), []
    out = tiny_pipeline(
        ["a cat", "a dog"], height=24, width=40, num_inference_steps=3, seed=1,
        on_step=lambda step: sizes.append([picture.size for picture in preview(step.x0)]),
    )  # fmt: skip
    assert sizes == [[(40, 24)] * 2] * 3 and not out.stopped


def test_taesd(tiny_pipeline, tmp_path):
    from diffusers import AutoencoderTiny

    factor = tiny_pipeline.components.autoencoder.factor
    stages = factor.bit_length()
    sizes = {f"{side}_block_out_channels": [8] * stages for side in ("encoder", "decoder")}
    counts = {f"num_{side}_blocks": [1] * stages for side in ("encoder", "decoder")}
    torch.manual_seed(0)
    model = AutoencoderTiny(**sizes, **counts).eval()
    model.save_pretrained(tmp_path / "taesd")
    latents = torch.randn(2, 4, 4, 6)
    with torch.no_grad():
        wanted = array(to_pil(model.decode(latents).sample.clamp(-1, 1)))
    assert np.array_equal(array(tiny_pipeline.preview("taesd", tmp_path / "taesd")(latents)), wanted)
    AutoencoderTiny(**sizes, **counts, latent_channels=8).save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="latents of 8 channels"):
        tiny_pipeline.preview("taesd", tmp_path / "other")


def test_mistakes(tiny_pipeline, tmp_path):
    with pytest.raises(ConfigError, match=r"unknown preview 'tased'; there are linear, taesd \(did you mean 'taesd'"):
        tiny_pipeline.preview("tased")
    with pytest.raises(ConfigError, match="needs the folder"):
        tiny_pipeline.preview("taesd")
    with pytest.raises(ConfigError, match="needs no folder"):
        tiny_pipeline.preview("linear", tmp_path)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        tiny_pipeline.preview("taesd", tmp_path)
