#!/usr/bin/env bash
# Kills N runs at random moments, resumes them, and compares bit for bit.
#   bash scripts/soak.sh N SEED
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh test
python -m scripts.soak "$@"
