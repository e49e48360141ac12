"""The tiny autoencoder against diffusers', from its folder, and what is refused there."""

import json

import pytest
import torch

from latent_diffusion.checkpoint.folder.tiny_folder import load_tiny_autoencoder
from latent_diffusion.errors import CheckpointError, ConfigError
from latent_diffusion.models.tiny_autoencoder import TinyAutoencoder, TinyAutoencoderConfig

SMALL = {
    "encoder_block_out_channels": [8, 8, 8], "decoder_block_out_channels": [8, 8, 8],
    "num_encoder_blocks": [1, 2, 1], "num_decoder_blocks": [2, 1, 1],
}  # fmt: skip


@pytest.fixture
def theirs(tmp_path):
    """A random tiny autoencoder of diffusers and the folder it wrote."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    model = AutoencoderTiny(**SMALL).eval()
    model.save_pretrained(tmp_path / "taesd")
    return model, tmp_path / "taesd"


def test_it_is_theirs(theirs):
    model, folder = theirs
    ours = load_tiny_autoencoder(folder)
    images, latents = torch.rand(2, 3, 16, 24) * 2 - 1, torch.randn(2, 4, 4, 6) * 3
    with torch.no_grad():
        assert (ours.to_latents(images) - model.encode(images).latents).abs().max() <= 1e-6
        assert (ours.to_images(latents) - model.decode(latents).sample).abs().max() <= 1e-6
    assert ours.factor == 4 and not ours.training


def test_keys_of_the_published_size():
    from diffusers import AutoencoderTiny

    with torch.device("meta"):
        ours, theirs = TinyAutoencoder(TinyAutoencoderConfig()), AutoencoderTiny()
    mine = {name: t.shape for name, t in ours.state_dict().items()}
    assert mine == {name: t.shape for name, t in theirs.state_dict().items()}
    assert ours.factor == 8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"_class_name": "AutoencoderKL"}, "AutoencoderKL"),
        ({"act_fn": "gelu"}, "act_fn"),
        ({"latent_channels": 0}, "latent_channels"),
        ({"num_encoder_blocks": [1, "2", 1]}, "num_encoder_blocks"),
        ({"num_decoder_blocks": 3}, "num_decoder_blocks"),
        ({"num_decoder_blocks": [2, 1]}, "3 entries"),
        ({"decoder_block_out_channels": [8, 8, 16]}, "one width"),
        ({"scaling_factor": 0}, "scaling_factor"),
        ({"latent_channels": 8}, "encoder"),  # the weights are for another size
    ],
    ids=str,
)
def test_a_folder_that_does_not_fit_is_named(theirs, change, words):
    file = theirs[1] / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match=words) as error:
        load_tiny_autoencoder(theirs[1])
    assert "taesd" in str(error.value)


def test_sizes_that_cannot_be():
    with pytest.raises(ConfigError, match="0 entries"):
        TinyAutoencoderConfig(encoder_block_out_channels=(), num_encoder_blocks=())
