#!/usr/bin/env bash
# Compares with transformers, keras-hub and PyTorch, which are installed for
# this alone, into a virtual environment of their own (.venv-parity):
# bash scripts/parity.sh [arguments of pytest]
set -euo pipefail
cd "$(dirname "$0")/.."
unset VIRTUAL_ENV
venv=.venv-parity
. scripts/environment.sh test,parity
exec python -m pytest --numprocesses 2 --dist loadfile tests/parity "$@"
