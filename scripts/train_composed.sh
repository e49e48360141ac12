#!/usr/bin/env bash
# Trains the first version of the bundled model on with composed pictures: CLIP and the decoder first, then U-Net and text
# encoder together. `python scripts/pack_changes.py FOLDER/unet/model` makes the result the bundled model.
# Interrupt it when you like; the same command continues from the last checkpoint.
#   bash scripts/train_composed.sh FOLDER [key=value ...]      overrides go to all runs, for example threads=1
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:?a folder for the runs}
shift
[ -d "$runs/clip/model" ] || python -m latent_diffusion.train configs/emoji/composed/clip.yaml output="$runs/clip" "$@"
[ -d "$runs/decoder/model" ] || python -m latent_diffusion.train configs/emoji/composed/decoder.yaml output="$runs/decoder" "$@"
if [ ! -d "$runs/start" ]; then  # the first version with the new decoder and text encoder, whose states its U-Net reads
    rm -rf "$runs/start.partial"
    python scripts/fold_text_states.py assets/emoji-first "$runs/clip/model" assets/emoji-128.zip "$runs/start.partial"
    cp "$runs"/decoder/model/vae/* "$runs/start.partial/vae"
    mv "$runs/start.partial" "$runs/start"
fi
python -m latent_diffusion.train configs/emoji/composed/unet.yaml output="$runs/unet" objective.init="$runs/start" "$@"
