#!/usr/bin/env bash
# Fine-tunes a tiny PaliGemma on scans of handwritten digits, and asks it about
# scans it has not seen.
#
#   bash scripts/demo.sh          reads one digit; attention weights alone
#   bash scripts/demo.sh detect   finds and cuts out several; all weights
#   bash scripts/demo.sh stages   trains a PaliGemma from nothing, all stages
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh demo

# Without it every step takes and returns fresh memory page by page, which on a
# virtual machine costs as much time as the step itself.
export GLIBC_TUNABLES=glibc.malloc.hugetlb=1

case "${1:-read}" in
  read)
    run=runs/digits
    python -m scripts.make_digits data/digits
    python -m trainers.train --config configs/transfers/digits.py \
      --workdir "$run"
    python -m scripts.draw_predictions "$run/val/predictions.jsonl" \
      "$run/predictions.png" --image_root data/digits --num 40
    python -m scripts.summarize_run "$run" val/exact_match
    ;;
  detect)
    run=runs/scenes
    codec=paligemma/assets/tiny_mask_codec.npz
    if [ ! -e data/scenes ]; then
      python -m scripts.make_scenes data/scenes --codec "$codec"
    fi
    python -m trainers.train --config configs/transfers/scenes.py \
      --workdir "$run"
    for task in detection segmentation; do
      python -m scripts.draw_predictions "$run/$task/predictions.jsonl" \
        "$run/$task.png" --image_root data/scenes --num 40 --codec "$codec"
    done
    python -m scripts.summarize_run "$run" detection/AP50 segmentation/miou
    python -m scripts.report "$run"
    ;;
  stages)
    python -m scripts.make_digits data/digits
    if [ ! -e data/stages ]; then
      python -m scripts.make_stages data/stages
    fi
    python -m scripts.stages runs/stages
    ;;
  *)
    echo "error: demo \"$1\", expected read, detect or stages" >&2
    exit 2
    ;;
esac
