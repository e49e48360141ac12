"""Names of tensors in CompVis and A1111 files for those of a U-Net or an autoencoder here, one to one.

There the blocks of a U-Net stand in one row, down to the middle and up again, each with its convolutions first and its
transformer after them; here they stand in levels. The layers within a block have other names too.
Source of the names: github.com/CompVis/stable-diffusion, ldm/modules/diffusionmodules (openaimodel.py, model.py).
"""

from collections.abc import Iterable, Mapping

from latent_diffusion.models.autoencoder import AutoencoderConfig
from latent_diffusion.models.unet import UNetConfig

__all__ = ["autoencoder_names", "unet_names"]

UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
AUTOENCODER = {
    "quant_conv": "quant_conv",
    "post_quant_conv": "post_quant_conv",
    **{
        f"{side}.{here}": f"{side}.{there}"
        for side in ("encoder", "decoder")
        for here, there in {
            "conv_in": "conv_in",
            "mid_block.resnets.0": "mid.block_1",
            "mid_block.attentions.0": "mid.attn_1",
            "mid_block.resnets.1": "mid.block_2",
            "conv_norm_out": "norm_out",
            "conv_out": "conv_out",
        }.items()
    },
}
AUTOENCODER_RESNET = {"conv_shortcut": "nin_shortcut"}
AUTOENCODER_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_names(config: UNetConfig, names: Iterable[str]) -> dict[str, str]:
    """Return name here -> name there, without `model.diffusion_model.`, for the tensors of a U-Net.

    Args:
        config: the U-Net's, for the number of its blocks.
        names: of its tensors, or of its modules.
    """
    blocks = dict(UNET)
    count = config.layers_per_block + 1  # blocks a level: on the way down the last one halves the size
    levels = len(config.block_out_channels)
    for level in range(levels):
        start = 1 + level * count
        for block in range(config.layers_per_block):
            blocks[f"down_blocks.{level}.resnets.{block}"] = f"input_blocks.{start + block}.0"
            blocks[f"down_blocks.{level}.attentions.{block}"] = f"input_blocks.{start + block}.1"
        blocks[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{start + count - 1}.0.op"
        for block in range(count):
            blocks[f"up_blocks.{level}.resnets.{block}"] = f"output_blocks.{level * count + block}.0"
            blocks[f"up_blocks.{level}.attentions.{block}"] = f"output_blocks.{level * count + block}.1"
        # doubling the size comes last in its block: third after a transformer, else second
        place = 1 + config.cross_attention[levels - 1 - level]
        blocks[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{level * count + count - 1}.{place}.conv"
    return {name: _renamed(name, blocks, {"resnets": UNET_RESNET}) for name in names}


def autoencoder_names(config: AutoencoderConfig, names: Iterable[str]) -> dict[str, str]:
    """Return name here -> name there, without `first_stage_model.`, for the tensors of an autoencoder."""
    blocks = dict(AUTOENCODER)
    levels = len(config.block_out_channels)
    for level in range(levels):
        there = levels - 1 - level  # there both sides count from the picture
        for block in range(config.layers_per_block):
            blocks[f"encoder.down_blocks.{level}.resnets.{block}"] = f"encoder.down.{level}.block.{block}"
        for block in range(config.layers_per_block + 1):
            blocks[f"decoder.up_blocks.{level}.resnets.{block}"] = f"decoder.up.{there}.block.{block}"
        blocks[f"encoder.down_blocks.{level}.downsamplers.0.conv"] = f"encoder.down.{level}.downsample.conv"
        blocks[f"decoder.up_blocks.{level}.upsamplers.0.conv"] = f"decoder.up.{there}.upsample.conv"
    inner = {"resnets": AUTOENCODER_RESNET, "attentions": AUTOENCODER_ATTENTION}
    return {name: _renamed(name, blocks, inner) for name in names}


def _renamed(name: str, blocks: Mapping[str, str], inner: Mapping[str, Mapping[str, str]]) -> str:
    """Return a name with its block renamed, and the layer within the block where that kind of block renames layers."""
    parts = name.split(".")
    cut = next(cut for cut in range(len(parts), 0, -1) if ".".join(parts[:cut]) in blocks)
    block, rest = parts[:cut], ".".join(parts[cut:])
    layers = inner.get(block[-2], {}) if len(block) > 1 else {}
    for here, there in layers.items():
        if rest == here or rest.startswith(f"{here}."):
            rest = there + rest.removeprefix(here)
            break
    return ".".join([blocks[".".join(block)], rest]).rstrip(".")
