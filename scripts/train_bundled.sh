#!/usr/bin/env bash
# Remakes the bundled model's first version (assets/emoji-first) from the pictures in assets/: autoencoder, CLIP,
# U-Net (narrow and deep, then broad), then packs and judges it.
# About two and a half hours on two CPU cores. Interrupt it when you like; the same command continues.
#   bash scripts/train_bundled.sh [key=value ...]      overrides go to every run, for example precision=float32
set -euo pipefail
cd "$(dirname "$0")/.."
for part in autoencoder clip unet unet_broad; do
    accelerate launch --num_processes 1 -m latent_diffusion.train "configs/emoji/$part.yaml" "$@"
done
python scripts/pack_bundled.py runs/emoji/unet_broad/model runs/emoji/clip/model assets/emoji-first
latent-diffusion evaluate assets/emoji-first --data assets/emoji-128.zip --output "runs/emoji/evaluation-$(date +%Y%m%d-%H%M%S)"
