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

trained() { [ -e $runs/$1/model/model_index.json ] || python -m latent_diffusion.train configs/science/$1.yaml; }
halved() {  # STEPS INIT UPDATES: a further round of progressive distillation
  local output=$runs/progressive_$1
  [ -e $output/model/model_index.json ] || python -m latent_diffusion.train configs/science/progressive.yaml \
    output=$output objective.init=$runs/$2/model objective.steps=$1 steps=$3
}
consistency() {
  trained consistency
  trained progressive
  halved 4 progressive 800
  halved 2 progressive_4 500
  trained distribution_matching
  python -m experiments.science.few_steps $runs/{consistency,progressive_4,progressive_2,distribution_matching}/model \
    --output $runs/few_steps.json --sheet docs/science/consistency.webp
}
flow() {
  trained reflow
  trained bridge
  python -m experiments.science.flow $runs/reflow/model --output $runs/flow
}
variance() {
  trained learned_variance
  [ -e $runs/learned_schedule/model/schedule.json ] || python -m latent_diffusion.train configs/science/learned_schedule.yaml
  python -m experiments.science.variance --output $runs/variance
}
processes() {
  local latent="configs/science/plane_latent.yaml objective.latent.init=$runs/plane_latent/model"
  for process in damped gan diffusion latent; do python -m latent_diffusion.train configs/science/plane_$process.yaml; done
  python -m latent_diffusion.train $latent objective.latent.stage=prior output=$runs/plane_latent_prior
  python -m latent_diffusion.train $latent objective.latent.stage=joint output=$runs/plane_latent_joint
  python -m experiments.science.processes --output $runs/processes
}

pages=(classifier clip likelihood repaint score consistency flow variance families processes)
for page in "${@:-${pages[@]}}"; do
  [ "$(type -t "$page")" = function ] || { echo "science.sh: no page '$page'; there are ${pages[*]}" >&2; exit 2; }
  echo "== $page"
  "$page"
done
