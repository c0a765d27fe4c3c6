#!/usr/bin/env bash
# Runs all tests: bash scripts/test.sh [arguments of pytest]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh test
exec python -m pytest --numprocesses 2 --dist loadfile "$@"
