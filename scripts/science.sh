#!/usr/bin/env bash
# Remake the figures of docs/science/: all of them, or the pages named. What is finished in runs/science/ is skipped.
#   bash scripts/science.sh [NAME ...]
# Every page is one function here, under the name of its file. The sizes are those of a full run; a page says which
# figures it shows.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=runs/science

score() { python -m experiments.science.score --output $runs/score; }

pages=(score)
for page in "${@:-${pages[@]}}"; do
  [ "$(type -t "$page")" = function ] || { echo "science.sh: no page '$page'; there are ${pages[*]}" >&2; exit 2; }
  echo "== $page"
  "$page"
done
