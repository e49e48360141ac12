"""What every file in families/ must fulfil, at true sizes without their gigabytes: networks are on the meta device."""

import importlib
import json

import pytest
import torch

from latent_diffusion.checkpoint.files.weights import Stored
from latent_diffusion.checkpoint.folder.network_config import (
    autoencoder_config,
    autoencoder_values,
    unet_config,
    unet_values,
)
from latent_diffusion.checkpoint.folder.open_clip_names import TEXT, from_open_clip, to_open_clip
from latent_diffusion.checkpoint.folder.scheduler_config import read_schedule, write_schedule
from latent_diffusion.checkpoint.folder.text_folder import bare
from latent_diffusion.checkpoint.folder.vocabulary import clip_vocabulary
from latent_diffusion.checkpoint.single.compvis_names import autoencoder_names, unet_names
from latent_diffusion.checkpoint.single.layout import averaged_name
from latent_diffusion.families import FAMILIES
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.models.unet import UNet
from latent_diffusion.registry import names

PUBLISHED = {"sd1": 859_520_964, "sd2": 865_910_724, "sd2_v": 865_910_724, "sdxl": 2_567_463_684}
"""Weights of the published U-Nets."""
MEANINGS = {"ARCHITECTURE", "AUTOENCODER", "LOOKS_LIKE", "SCHEDULER", "TEXT", "UNET", "ZEROS_FOR_EMPTY_PROMPT"}


@pytest.fixture(scope="module", params=names(FAMILIES))
def family(request):
    return importlib.import_module(f"{FAMILIES}.{request.param}")


@pytest.fixture(scope="module")
def networks(family):
    with torch.device("meta"):
        return UNet(family.UNET), AutoencoderKL(family.AUTOENCODER)


def shapes(network):
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def test_a_family_is_values_under_known_names(family):
    assert {"AUTOENCODER", "SCHEDULER", "UNET"} <= set(family.__all__) <= MEANINGS
    assert {name for name in vars(family) if name.isupper()} == set(family.__all__)


def test_names_and_shapes_are_diffusers(family, networks):
    from diffusers import AutoencoderKL as TheirAutoencoder
    from diffusers import UNet2DConditionModel

    unet, autoencoder = networks
    with torch.device("meta"):
        assert shapes(unet) == shapes(UNet2DConditionModel.from_config(unet_values(family.UNET)))
        assert shapes(autoencoder) == shapes(TheirAutoencoder.from_config(autoencoder_values(family.AUTOENCODER)))
    name = family.__name__.rpartition(".")[2]
    count = sum(parameter.numel() for parameter in unet.parameters())
    assert count == PUBLISHED.get(name, count)


def test_sizes_survive_a_folder(family):
    assert unet_config(json.loads(json.dumps(unet_values(family.UNET))), "unet") == family.UNET
    values = json.loads(json.dumps(autoencoder_values(family.AUTOENCODER)))
    assert autoencoder_config(values, "vae") == family.AUTOENCODER


def test_the_scheduler_is_read_and_written_as_it_is(family):
    schedule, prediction = read_schedule(family.SCHEDULER)
    assert write_schedule(schedule, prediction, family.SCHEDULER) == family.SCHEDULER


def test_the_u_net_fits_the_autoencoder_and_the_text_towers(family):
    unet, channels = family.UNET, family.AUTOENCODER.latent_channels
    assert unet.out_channels == channels and unet.in_channels >= channels
    if towers := getattr(family, "TEXT", ()):
        assert sum(tower.width for tower in towers) == unet.cross_attention_dim
        pooled = towers[-1].projection or 0
        assert (unet.added_width is None) == (pooled == 0)
        assert ((unet.added_width or 0) - pooled) % unet.size_width == 0


def test_the_family_it_looks_like_has_a_u_net_of_the_same_sizes(family):
    if like := getattr(family, "LOOKS_LIKE", None):
        other = importlib.import_module(f"{FAMILIES}.{like}")
        assert not hasattr(other, "LOOKS_LIKE")
        assert other.UNET.block_out_channels == family.UNET.block_out_channels
        assert other.UNET.in_channels == family.UNET.in_channels
        assert other.UNET.cross_attention_dim == family.UNET.cross_attention_dim


def test_names_of_single_files_are_a_bijection(family, networks):
    for network, table in zip(networks, (unet_names, autoencoder_names), strict=True):
        found = table(network.config, network.state_dict())
        assert found.keys() == network.state_dict().keys() and len(set(found.values())) == len(found)
    flat = [averaged_name(name) for name in unet_names(family.UNET, networks[0].state_dict()).values()]
    assert len(set(flat)) == len(flat)  # names without dots still differ


def test_names_of_text_towers_are_a_bijection(family):
    for config in getattr(family, "TEXT", ()):
        with torch.device("meta"):
            model = config.build(clip_vocabulary("<|endoftext|>"))
        state = {bare(name): tensor for name, tensor in model.state_dict().items()}
        there = {name: Stored.of(tensor) for name, tensor in to_open_clip(state).items()}
        back = from_open_clip(there, TEXT)
        assert {name: stored.shape for name, stored in back.items()} == {n: tuple(t.shape) for n, t in state.items()}
