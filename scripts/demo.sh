#!/usr/bin/env bash
# Fine-tunes the attention weights of a tiny PaliGemma on scans of handwritten
# digits and asks it about scans it has not seen: bash scripts/demo.sh
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh demo

# Without it every step takes and returns fresh memory page by page, which on a
# virtual machine costs as much time as the step itself.
export GLIBC_TUNABLES=glibc.malloc.hugetlb=1

run=runs/digits
python -m scripts.make_digits data/digits
python -m trainers.train --config configs/transfers/digits.py --workdir "$run"
python -m scripts.draw_predictions "$run/val/predictions.jsonl" \
  "$run/predictions.png" --image_root data/digits --num 40
python -m scripts.summarize_run "$run"
