#!/usr/bin/env bash
# Feeds damaged files to every reader for so many seconds, and counts.
#   bash scripts/fuzz.sh SECONDS SEED
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh test
python -m scripts.fuzz "$@"
