"""A tiny model with random weights, built once a session: every part is real, only small."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

CAPTIONS = ("a 3d render of a red apple", "a flat icon of a cat", "a black and white drawing of the sun", "a blue car")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A diffusers folder of the tiny family with random weights (epsilon); treat it as read-only."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    from latent_diffusion.checkpoint.components import Components
    from latent_diffusion.checkpoint.diffusers_folder import save_folder
    from latent_diffusion.checkpoint.scheduler_config import read_schedule
    from latent_diffusion.data.bpe import clip_tokenizer, train_byte_pairs
    from latent_diffusion.families import tiny
    from latent_diffusion.models.autoencoder import AutoencoderKL
    from latent_diffusion.models.text_encoder import TextEncoder
    from latent_diffusion.models.unet import UNet

    folder = tmp_path_factory.mktemp("models") / "tiny"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = clip_tokenizer(train_byte_pairs(CAPTIONS, 600))
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=tiny.UNET.cross_attention_dim,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        schedule, prediction = read_schedule(tiny.SCHEDULER)
        components = Components(
            unet=UNet(tiny.UNET),
            autoencoder=AutoencoderKL(tiny.AUTOENCODER),
            text_encoder=TextEncoder(CLIPTextModel(text), tokenizer),
            schedule=schedule,
            prediction=prediction,
            scheduler_config=tiny.SCHEDULER,
            name="tiny",
        )
    save_folder(components, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_folder):
    """The tiny model as a pipeline; pipelines keep no state, so all tests may share it."""
    from latent_diffusion import LatentDiffusionPipeline

    return LatentDiffusionPipeline.from_pretrained(tiny_folder, device="cpu")
