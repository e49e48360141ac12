#!/usr/bin/env bash
# diffusers 0.42.1 (with peft 0.21.2): kohya's layout of a LoRA on `add_embedding` of an SDXL U-Net.
#
# One would expect: `lora_unet_add_embedding_linear_1` names the layer add_embedding.linear_1, as
# `lora_unet_time_embedding_linear_1` names time_embedding.linear_1.
# What happens instead: the first becomes add.embedding.linear, a layer that does not exist; it is left out with one
# message among others, and the rest is loaded. The layer that reads the pooled prompt and the sizes stays untrained.
#
# Output seen on 2026-11-29 (Python 3.11, CPU):
#   torch 2.13.0+cpu, diffusers 0.42.1, peft 0.21.2
#   keys read: unet.add.embedding.linear.lora.down.weight
#   unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight
#   unet.time_embedding.linear_1.lora.down.weight
#   layers changed: down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q time_embedding.linear_1
#
# Why it matters: an adapter of all linear layers draws other pictures here than where it was trained. Leave this layer
# out of the adapter, or write it in the layout of PEFT.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
    torch==2.13.0 diffusers==0.42.1 transformers==5.24.0 peft==0.21.2
cd "$folder"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error DIFFUSERS_VERBOSITY=error

"$folder/venv/bin/python" -W ignore - <<'PROGRAM'
import sys
from importlib.metadata import version

import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

print(", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "peft")))
torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=8,
    block_out_channels=(32, 64),
    layers_per_block=1,
    norm_num_groups=8,
    cross_attention_dim=32,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=8,
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=64,
).eval()
attention = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
state = {}
for path in (attention, "add_embedding.linear_1", "time_embedding.linear_1"):
    weight = unet.get_submodule(path).weight
    key = "lora_unet_" + path.replace(".", "_")
    state[f"{key}.lora_down.weight"] = torch.randn(4, weight.shape[1])
    state[f"{key}.lora_up.weight"] = torch.randn(weight.shape[0], 4)
    state[f"{key}.alpha"] = torch.tensor(4.0)
read, alphas = StableDiffusionXLPipeline.lora_state_dict(dict(state), unet_config=unet.config)
print("keys read:", *sorted(key for key in read if "lora_A" in key or "lora.down" in key or "down.weight" in key))
StableDiffusionXLPipeline.load_lora_into_unet(read, network_alphas=alphas, unet=unet, adapter_name="one")
changed = sorted(name.removesuffix(".lora_A") for name, _ in unet.named_modules() if name.endswith(".lora_A"))
print("layers changed:", *changed)
sys.exit(0 if changed == [attention] or changed == sorted([attention, "time_embedding.linear_1"]) else "the behaviour has changed")
PROGRAM
