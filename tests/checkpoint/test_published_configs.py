"""Configuration files as the published folders have them, oddities included, are the families' values."""

import importlib
import json

import pytest

from latent_diffusion.checkpoint.folder.network_config import read_autoencoder_config, read_unet_config
from latent_diffusion.checkpoint.folder.pipeline_index import read_index
from latent_diffusion.checkpoint.folder.scheduler_config import read_schedule
from latent_diffusion.checkpoint.folder.text_folder import load_text_model
from latent_diffusion.errors import CheckpointError

SHORT = {  # what folders of 2022 have
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
SD2 = SHORT | {
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "only_cross_attention": False,
    "use_linear_projection": True,
    "num_class_embeds": None,
}
LONG = SD2 | {  # what folders since 2023 have
    "_diffusers_version": "0.19.0.dev0",
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_attention_heads": None,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "sample_size": 128,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "upcast_attention": None,  # not False
}
UNETS = {
    "sd1": SHORT,
    "sd1_inpaint": SHORT | {"in_channels": 9},
    "sd2": SD2,
    "sd2_v": SD2 | {"sample_size": 96, "upcast_attention": True},
    "sd2_inpaint": SD2 | {"in_channels": 9},
    "sdxl": LONG
    | {
        "attention_head_dim": [5, 10, 20],
        "block_out_channels": [320, 640, 1280],
        "cross_attention_dim": 2048,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "projection_class_embeddings_input_dim": 2816,
        "transformer_layers_per_block": [1, 2, 10],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    },
    "sdxl_refiner": LONG
    | {
        "attention_head_dim": [6, 12, 24, 24],
        "block_out_channels": [384, 768, 1536, 1536],
        "cross_attention_dim": 1280,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "projection_class_embeddings_input_dim": 2560,
        "transformer_layers_per_block": 4,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    },
}
AUTOENCODER = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,  # and no scaling_factor, in 2022
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
AUTOENCODERS = {
    "sd1": AUTOENCODER,
    "sd2_v": AUTOENCODER | {"sample_size": 768},
    "sdxl": AUTOENCODER | {"force_upcast": True, "sample_size": 1024, "scaling_factor": 0.13025},
}
TEXTS = {
    "sd1": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12},
    "sd2": {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 23},
    "sdxl": {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32},
}
TEXT = {
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "pad_token_id": 1,
    "projection_dim": 512,
    "torch_dtype": "float32",
    "transformers_version": "4.25.0.dev0",
    "vocab_size": 49408,
}


def write(folder, name, values):
    file = folder / name
    file.write_text(json.dumps(values))
    return file


@pytest.mark.parametrize("family", UNETS)
def test_unets(family, tmp_path):
    values = importlib.import_module(f"latent_diffusion.families.{family}")
    assert read_unet_config(write(tmp_path, "config.json", UNETS[family])) == values.UNET


@pytest.mark.parametrize("family", AUTOENCODERS)
def test_autoencoders(family, tmp_path):
    values = importlib.import_module(f"latent_diffusion.families.{family}")
    assert read_autoencoder_config(write(tmp_path, "config.json", AUTOENCODERS[family])) == values.AUTOENCODER


@pytest.mark.parametrize("family", TEXTS)
def test_text_models(family, tmp_path):
    """The config is understood; what is missing are the weights."""
    write(tmp_path, "config.json", TEXT | TEXTS[family])
    with pytest.raises(CheckpointError, match=r"no weights; model\.safetensors was expected"):
        load_text_model(tmp_path, projection=family == "sdxl")


@pytest.mark.parametrize("family", [*UNETS, "sdxl_inpaint"])
def test_schedulers(family):
    values = importlib.import_module(f"latent_diffusion.families.{family}")
    schedule, prediction = read_schedule(values.SCHEDULER)
    assert prediction.name == ("v_prediction" if family == "sd2_v" else "epsilon")
    assert 14.6 < (level := schedule.level(999)).sigma / level.alpha < 14.62


def test_an_index_of_2022(tmp_path):
    values = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.6.0",
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    index = read_index(write(tmp_path, "model_index.json", values))
    assert not index.xl and index.towers == (0,) and index.unused == ("feature_extractor", "safety_checker")
    assert not index.zeros_for_empty_prompt


@pytest.mark.parametrize("zeros", [True, False, None])
def test_an_index_of_sdxl(zeros, tmp_path):
    values = {
        "_class_name": "StableDiffusionXLPipeline",
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    } | ({} if zeros is None else {"force_zeros_for_empty_prompt": zeros})
    index = read_index(write(tmp_path, "model_index.json", values))
    assert index.xl and index.towers == (0, 1) and index.unused == ()
    assert index.zeros_for_empty_prompt is (zeros is not False)  # diffusers' default is True
