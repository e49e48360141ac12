#!/usr/bin/env bash
# Trains the bundled model on with composed pictures: CLIP and the decoder first, then the U-Net, then U-Net and text encoder.
# Interrupt it when you like; the same command continues from the last checkpoint.
#   bash scripts/train_composed.sh FOLDER [key=value ...]      overrides go to all runs, for example threads=1
# To go on from the bundled model, make FOLDER/start of its weights first:
#   python scripts/unpack_changes.py assets/emoji-changes.safetensors.z FOLDER/start
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:?a folder for the runs}
shift
if [ ! -d "$runs/start" ]; then  # the first version with the new decoder and text encoder, whose states its U-Net reads
    [ -d "$runs/clip/model" ] || python -m latent_diffusion.train configs/emoji/composed/clip.yaml output="$runs/clip" "$@"
    [ -d "$runs/decoder/model" ] || python -m latent_diffusion.train configs/emoji/composed/decoder.yaml output="$runs/decoder" "$@"
    rm -rf "$runs/start.partial"
    python scripts/fold_text_states.py assets/emoji-first "$runs/clip/model" assets/emoji-128.zip "$runs/start.partial"
    cp "$runs"/decoder/model/vae/* "$runs/start.partial/vae"
    mv "$runs/start.partial" "$runs/start"
fi
python -m latent_diffusion.train configs/emoji/composed/unet.yaml output="$runs/unet" objective.init="$runs/start" "$@"
python -m latent_diffusion.train configs/emoji/composed/unet.yaml output="$runs/joint" objective.init="$runs/unet/model" steps=5200 \
    'objective.train={parts: [unet, text_encoder], rules: [{match: "^text_encoder", learning_rate: 1.0e-4}]}' "$@"
