#!/usr/bin/env bash
# Remake the figures of docs/science/: all of them, or the pages named. What is finished in runs/science/ is skipped.
#   bash scripts/science.sh [NAME ...]
# Every page is one function here, under the name of its file. The sizes are those of a full run; a page says which
# figures it shows.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=runs/science

classifier() {
  python -m latent_diffusion.train configs/science/classifier.yaml
  python -m latent_diffusion.train configs/science/classifier.yaml objective.times.high=0.001 output=$runs/classifier-clean
  python -m experiments.science.classifier --output $runs/classifier-figures
}
clip() {
  [ -e $runs/latent_clip/model/config.json ] || python -m latent_diffusion.train configs/science/latent_clip.yaml
  python -m experiments.science.clip --output $runs/clip-figures
}
likelihood() { python -m experiments.science.likelihood --output $runs/likelihood; }
repaint() { python -m experiments.science.repaint --output $runs/repaint; }
families() { python -m experiments.science.five_families --output $runs/families; }
score() { python -m experiments.science.score --output $runs/score; }

trained() {  # RUN [CONFIG SETTING ...]: train a model, once; CONFIG is the run's name where none is given
  local run=$1 config=${2:-$1}
  shift $(($# < 2 ? $# : 2))
  [ -e $runs/$run/model/model_index.json ] || python -m latent_diffusion.train configs/science/$config.yaml output=$runs/$run "$@"
}
consistency() {
  trained consistency
  trained progressive
  trained progressive_4 progressive objective.init=$runs/progressive/model objective.steps=4 steps=800
  trained progressive_2 progressive objective.init=$runs/progressive_4/model objective.steps=2 steps=500
  trained distribution_matching
  python -m experiments.science.few_steps $runs/{consistency,progressive_4,progressive_2,distribution_matching}/model \
    --output $runs/few_steps.json --sheet docs/science/consistency.webp
}
flow() {
  trained reflow
  trained bridge
  trained bridge_channels bridge objective.partner=channels
  python -m experiments.science.flow $runs/reflow/model --output $runs/flow
  python -m experiments.science.bridge $runs/{bridge,bridge_channels}/model --output $runs/bridge.json --sheet docs/science/bridge.webp
}
variance() {
  trained learned_variance
  [ -e $runs/learned_schedule/model/schedule.json ] || python -m latent_diffusion.train configs/science/learned_schedule.yaml
  python -m experiments.science.variance --output $runs/variance
}
processes() {
  local latent="configs/science/plane_latent.yaml objective.latent.init=$runs/plane_latent/model"
  for process in damped gan diffusion latent; do python -m latent_diffusion.train configs/science/plane_$process.yaml; done
  python -m latent_diffusion.train configs/science/plane_latent.yaml steps=3000 output=$runs/plane_latent_longer
  python -m latent_diffusion.train $latent objective.latent.stage=prior output=$runs/plane_latent_prior
  python -m latent_diffusion.train $latent objective.latent.stage=joint output=$runs/plane_latent_joint
  python -m experiments.science.processes --output $runs/processes
  python -m experiments.science.latent_processes --output $runs/latent_processes
}

pages=(classifier clip likelihood repaint score consistency flow variance families processes)
for page in "${@:-${pages[@]}}"; do
  [ "$(type -t "$page")" = function ] || { echo "science.sh: no page '$page'; there are ${pages[*]}" >&2; exit 2; }
  echo "== $page"
  "$page"
done
