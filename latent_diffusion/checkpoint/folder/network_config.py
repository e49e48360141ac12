"""`config.json` of a U-Net or an autoencoder <-> our configurations; diffusers' oddities end here.

The oddest: `attention_head_dim` of a U-Net is the NUMBER of heads (huggingface/diffusers issue 2011), and absent fields
mean whatever the class had as default when it was written.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from latent_diffusion.checkpoint.files.json_file import read_json
from latent_diffusion.errors import CheckpointError, ConfigError
from latent_diffusion.models.autoencoder import AutoencoderConfig
from latent_diffusion.models.unet import UNetConfig

__all__ = [
    "autoencoder_config",
    "autoencoder_values",
    "diffusers_version",
    "read_autoencoder_config",
    "read_unet_config",
    "unet_config",
    "unet_values",
]

UNET_DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "attention_head_dim": 8,
    "use_linear_projection": False,
    "upcast_attention": False,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "projection_class_embeddings_input_dim": None,
}
UNET_FIXED: dict[str, Any] = {
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "dropout": 0.0,
    "act_fn": "silu",
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "class_embed_type": None,
    "num_class_embeds": None,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "mid_block_only_cross_attention": None,
    "cross_attention_norm": None,
}
AUTOENCODER_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [64],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 32,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "force_upcast": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
LARGEST = {
    "sample_size": 8192,
    **dict.fromkeys(("in_channels", "out_channels", "latent_channels"), 1024),
    **dict.fromkeys(("block_out_channels", "cross_attention_dim", "projection_class_embeddings_input_dim"), 2**16),
    **dict.fromkeys(("layers_per_block", "transformer_layers_per_block"), 64),
    **dict.fromkeys(("norm_num_groups", "attention_head_dim", "addition_time_embed_dim"), 2**12),
}
"""The largest value of each size that is built: a file may not ask for more time and memory than any model has."""
AUTOENCODER_FIXED: dict[str, Any] = {"act_fn": "silu", "latents_mean": None, "latents_std": None}


def read_unet_config(file: Path) -> UNetConfig:
    """Read a U-Net's config.json; see `unet_config`."""
    return unet_config(read_json(file), str(file))


def unet_config(found: Mapping[str, Any], file: str) -> UNetConfig:
    """Return the configuration that the fields of a U-Net's config.json mean; `file` is where they were found.

    Raises:
        CheckpointError: a field is damaged or asks for an architecture that we do not have; the message names it.
    """
    values = _checked(found, file, "UNet2DConditionModel", UNET_DEFAULTS, UNET_FIXED)
    widths = values["block_out_channels"]
    down, up = values.pop("down_block_types"), values.pop("up_block_types")
    known = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
    if not set(down) <= known.keys():
        raise CheckpointError(f"{file}: down_block_types is {down}; each must be one of {', '.join(known)}")
    mirrored = [name.replace("Down", "Up") for name in reversed(down)]
    if list(up) != mirrored:
        raise CheckpointError(
            f"{file}: up_block_types is {up}; only the mirror of down_block_types, {mirrored}, is read"
        )
    side = values["sample_size"]
    if side is None:
        raise CheckpointError(
            f"{file}: sample_size is missing; set it to the side of the latents that the U-Net was trained at"
        )
    values["sample_size"] = _single(file, "sample_size", side)
    values["cross_attention"] = [known[name] for name in down]
    heads = values.pop("attention_head_dim")  # number of heads, see above
    values["num_attention_heads"] = heads if isinstance(heads, list) else [heads] * len(widths)
    for name in ("layers_per_block", "cross_attention_dim"):
        values[name] = _single(file, name, values[name])
    values |= _added(file, values)
    return _build(file, UNetConfig, values)


def _added(file: str, values: dict[str, Any]) -> dict[str, Any]:
    """Take the fields of SDXL's additional conditioning out of `values` and return them under this package's names."""
    kind, size = values.pop("addition_embed_type"), values.pop("addition_time_embed_dim")
    width = values.pop("projection_class_embeddings_input_dim")
    if kind is None:
        return {}
    if kind != "text_time" or size is None or width is None:
        raise CheckpointError(
            f"{file}: addition_embed_type is {kind!r}; only 'text_time' (SDXL) with addition_time_embed_dim and "
            "projection_class_embeddings_input_dim is supported"
        )
    return {"added_width": width, "size_width": size}


def unet_values(config: UNetConfig) -> dict[str, Any]:
    """Return the fields of a U-Net's config.json."""
    values = asdict(config)
    attends = values.pop("cross_attention")
    values["down_block_types"] = ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends]
    values["up_block_types"] = ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)]
    heads = values.pop("num_attention_heads")
    values["attention_head_dim"] = heads[0] if len(set(heads)) == 1 else heads  # number of heads, see above
    width, size = values.pop("added_width"), values.pop("size_width")
    values |= {
        "addition_embed_type": None if width is None else "text_time",
        "addition_time_embed_dim": None if width is None else size,
        "projection_class_embeddings_input_dim": width,
    }
    return _written("UNet2DConditionModel", values | UNET_FIXED)


def read_autoencoder_config(file: Path) -> AutoencoderConfig:
    """Read an autoencoder's config.json; see `autoencoder_config`."""
    return autoencoder_config(read_json(file), str(file))


def autoencoder_config(found: Mapping[str, Any], file: str) -> AutoencoderConfig:
    """Return the configuration that the fields of an autoencoder's config.json mean; `file` is where they were found.

    Raises:
        CheckpointError: a field is damaged or asks for an architecture that we do not have; the message names it.
    """
    blocks = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
    values = _checked(found, file, "AutoencoderKL", AUTOENCODER_DEFAULTS | dict.fromkeys(blocks), AUTOENCODER_FIXED)
    for name, kind in blocks.items():
        found = values.pop(name)
        if found is not None and set(found) != {kind}:
            raise CheckpointError(f"{file}: {name} is {found}; each must be {kind}")
        widths = values["block_out_channels"]
        if found is not None and isinstance(widths, list) and len(found) != len(widths):
            raise CheckpointError(f"{file}: {name} has {len(found)} entries, block_out_channels has {len(widths)}")
    if isinstance(values["sample_size"], list):
        values["sample_size"] = max(values["sample_size"], default=AUTOENCODER_DEFAULTS["sample_size"])
    return _build(file, AutoencoderConfig, values)


def autoencoder_values(config: AutoencoderConfig) -> dict[str, Any]:
    """Return the fields of an autoencoder's config.json."""
    levels = len(config.block_out_channels)
    values = asdict(config) | {
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    return _written("AutoencoderKL", values | AUTOENCODER_FIXED)


def diffusers_version() -> str:
    """Return the version that the written configurations are for: the one installed."""
    return version("diffusers")


def _written(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {"_class_name": kind, "_diffusers_version": diffusers_version(), **dict(sorted(values.items()))}


def _checked(
    found: Mapping[str, Any], file: str, kind: str, defaults: Mapping[str, Any], fixed: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the fields of `defaults`, as `found` where they are; refuse fields that differ from `fixed`."""
    if found.get("_class_name", kind) != kind:
        raise CheckpointError(f"{file}: _class_name is {found['_class_name']!r}, {kind!r} was expected")
    for name, value in fixed.items():
        # null means absent; older versions wrote it for fields they did not have
        if name in found and found[name] is not None and found[name] != value:
            raise CheckpointError(f"{file}: {name} is {found[name]!r}; only {value!r} is supported")
    values = {name: found.get(name, default) for name, default in defaults.items()}
    values |= {name: default for name, default in defaults.items() if values[name] is None and default is False}
    for name, default in defaults.items():
        if not _fits(values[name], default):
            raise CheckpointError(f"{file}: {name} is {values[name]!r}, of the wrong type")
        for item in values[name] if isinstance(values[name], list) else [values[name]]:
            if name in LARGEST and item is not None and not (type(item) is int and 1 <= item <= LARGEST[name]):
                raise CheckpointError(
                    f"{file}: {name} is {values[name]!r}; integers from 1 to {LARGEST[name]} are read"
                )
            if isinstance(item, float) and not math.isfinite(item):
                raise CheckpointError(f"{file}: {name} is {values[name]!r}, not a finite number")
    return values


def _fits(value: Any, default: Any) -> bool:
    """Whether a JSON value has a type that a field with this default can have."""
    if isinstance(default, bool):
        return isinstance(value, bool)
    items = value if isinstance(value, list) and value else [value]
    if isinstance(default, list):
        return isinstance(value, list) and all(_fits(item, default[0]) for item in items)
    if isinstance(default, str):
        return isinstance(value, str)
    if default is None:
        return value is None or all(isinstance(item, int | float | str) for item in items)
    return all(isinstance(item, int | float) and not isinstance(item, bool) for item in items)


def _single(file: str, name: str, value: Any) -> Any:
    """Return the one value of a field that may also be a list with one entry a level."""
    if not isinstance(value, list):
        return value
    if not value or value.count(value[0]) != len(value):
        raise CheckpointError(f"{file}: {name} is {value}; only one value throughout is supported")
    return value[0]


Config = TypeVar("Config")


def _build(file: str, kind: Callable[..., Config], values: Mapping[str, Any]) -> Config:
    try:
        return kind(**values)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{file}: {error}") from None
