#!/usr/bin/env bash
# diffusers 0.42.1 (with torch 2.13.0, transformers 5.24.0): SDXL's sizes in bfloat16.
#
# One would expect: SDXL is conditioned on six numbers (original size, crop, target size) by their sinusoids; the type
# of the weights rounds the sinusoids, by less than 1 %.
# What happens instead: the pipeline rounds the six numbers to the type of the text embedding first. bfloat16 holds 8
# bits, so beyond 256 pixels numbers are multiples of 2, beyond 512 of 4: (1023, 1000) with target (1001, 515) becomes
# (1024, 1000) with (1000, 516), and the fast sinusoids are another point of the circle. float16 is exact up to 2048.
#
# Output seen on 2026-11-29 (Python 3.11, CPU; tiny random U-Net):
#   torch 2.13.0+cpu, transformers 5.24.0, diffusers 0.42.1
#   torch.float32   sizes [1023.0, 1000.0, 0.0, 0.0, 1001.0, 515.0], sinusoids off by 0 of 1
#   torch.float16   sizes [1023.0, 1000.0, 0.0, 0.0, 1001.0, 515.0], sinusoids off by 0 of 1
#   torch.bfloat16  sizes [1024.0, 1000.0, 0.0, 0.0, 1000.0, 516.0], sinusoids off by 0.95 of 1
#
# Why it matters: sizes that differ by less than 4 pixels are one size in bfloat16, the picture is not the one of
# float32 with rounding alone, and a tool that makes the sinusoids in float32 differs from diffusers for the same call.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
    torch==2.13.0 transformers==5.24.0 diffusers==0.42.1
cd "$folder"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error DIFFUSERS_VERBOSITY=error

"$folder/venv/bin/python" -W ignore - <<'PROGRAM'
import logging
import sys
from importlib.metadata import version

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

logging.disable(logging.WARNING)
print(", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "diffusers")))
torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=16, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=2, addition_embed_type="text_time", addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=6 * 256 + 8,
)
vae = AutoencoderKL(
    block_out_channels=(4, 8), norm_num_groups=4,
    down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
)
pipe = StableDiffusionXLPipeline(vae, None, None, None, None, unet, EulerDiscreteScheduler())
pipe.set_progress_bar_config(disable=True)

sizes = [1023.0, 1000.0, 0.0, 0.0, 1001.0, 515.0]
seen = {}
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    pipe.to(dtype)
    hook = unet.add_time_proj.register_forward_hook(lambda _, given, made: seen.update({dtype: (given[0], made)}))
    pipe(
        prompt_embeds=torch.zeros(1, 77, 8, dtype=dtype), pooled_prompt_embeds=torch.zeros(1, 8, dtype=dtype),
        original_size=(1023, 1000), target_size=(1001, 515), height=16, width=16,
        num_inference_steps=1, guidance_scale=1.0, output_type="latent",
    )
    hook.remove()
    given, made = seen[dtype]
    apart = (made.float() - seen[torch.float32][1]).abs().max().item()
    print(f"{str(dtype):15} sizes {given.tolist()}, sinusoids off by {apart:.2g} of 1")

exact = all(seen[dtype][0].tolist() == sizes for dtype in (torch.float32, torch.float16))
rounded = seen[torch.bfloat16][0].tolist() == [1024.0, 1000.0, 0.0, 0.0, 1000.0, 516.0]
sys.exit(0 if exact and rounded else "the behaviour has changed")
PROGRAM
