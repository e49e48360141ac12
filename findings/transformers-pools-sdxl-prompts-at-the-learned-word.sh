#!/usr/bin/env bash
# transformers 5.24.0, diffusers 0.42.1 (with torch 2.13.0): the pooled vector of a prompt with a learned word.
#
# One would expect: `load_textual_inversion` adds a word to a text encoder; the pooled vector (a condition of SDXL
# beside the text) still is read at the end of the prompt.
# What happens instead: where the text encoder's config has `"eos_token_id": 2`, as published SDXL folders have,
# transformers takes the largest id for the end of the prompt. The learned word gets a larger id than the end token, so
# the pooled vector is read at the learned word, and what stands after it does not count. A comment in the source of
# transformers allows for this; neither library warns. With the true id of the end token in the config the vector is
# right.
#
# Output seen on 2026-11-29 (Python 3.11, CPU; tiny random text encoder):
#   torch 2.13.0+cpu, transformers 5.24.0, diffusers 0.42.1
#   eos_token_id 2: learned word (id 60) at 2, end (id 59) at 6, pooled at 2; "cat" for "dog" after it moves the pooled vector by 0
#   eos_token_id 59: learned word (id 60) at 2, end (id 59) at 6, pooled at 6; "cat" for "dog" after it moves the pooled vector by 0.61
#
# Why it matters: two SDXL prompts that differ after the learned word only have one pooled vector, and a tool that reads
# it at the end of the prompt draws another picture with the same embedding.
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
from diffusers import (
    AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

logging.disable(logging.WARNING)
print(", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "diffusers")))
letters = list("abcdefghijklmnopqrstuvwxyz<>-")
words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
vocabulary = {word: index for index, word in enumerate(words)}
END = vocabulary["<|endoftext|>"]


def learned(eos):
    """Where the pooled vector is read in "a <zorg> cat", and how far two ends of the prompt move it."""
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=16, projection_dim=32, bos_token_id=END - 1, eos_token_id=eos,
    )
    encoder = CLIPTextModelWithProjection(config).eval()
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16)
    unet = UNet2DConditionModel(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, attention_head_dim=2,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"))
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=4)
    pipe = StableDiffusionXLPipeline(vae, None, encoder, None, tokenizer, unet, EulerDiscreteScheduler())
    vector = torch.randn(32, generator=torch.Generator().manual_seed(1))
    pipe.load_textual_inversion(
        {"<zorg>": vector}, token="<zorg>", text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2
    )

    def encode(text):
        ids = tokenizer(text, padding="max_length", max_length=16, return_tensors="pt").input_ids
        with torch.no_grad():
            out = encoder(ids)
            each = encoder.text_projection(out.last_hidden_state)[0]
        return ids[0].tolist(), each, out.text_embeds[0]

    ids, each, pooled = encode("a <zorg> cat")
    place = (each - pooled).abs().amax(-1).argmin().item()
    moved = (encode("a <zorg> cat")[2] - encode("a <zorg> dog")[2]).abs().max().item()
    print(
        f"eos_token_id {eos}: learned word (id {ids[2]}) at 2, end (id {END}) at {ids.index(END)}, pooled at {place}; "
        f'"cat" for "dog" after it moves the pooled vector by {moved:.2g}'
    )
    return place, ids.index(END), moved


old, end, still = learned(2)
new, _, moved = learned(END)
sys.exit(0 if (old, new) == (2, end) and still < 1e-6 and moved > 1e-3 else "the behaviour has changed")
PROGRAM
