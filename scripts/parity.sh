#!/usr/bin/env bash
# Compares with transformers, keras-hub and PyTorch, which are installed for
# this alone, into a virtual environment of their own (.venv-parity):
# bash scripts/parity.sh [arguments of pytest]
set -euo pipefail
cd "$(dirname "$0")/.."
unset VIRTUAL_ENV
venv=.venv-parity
. scripts/environment.sh test,parity
# Official scorers: of each one file is read, without what it depends on.
python -m pip install --quiet --disable-pip-version-check --no-deps \
  salesforce-lavis==1.0.2 lmms-eval==0.7.3 anls==0.0.2
# jax2onnx asks for an older orbax-checkpoint, which it does not use.
python -m pip install --quiet --disable-pip-version-check --no-deps \
  jax2onnx==0.17.1 onnx==1.23.2 onnx-ir==1.1.0 onnxruntime==1.32.0
# Programs as users run them, with the optimizations that other tests leave out.
export XLA_FLAGS="--xla_backend_optimization_level=3 \
  --xla_llvm_disable_expensive_passes=false"
exec python -m pytest --numprocesses 2 --dist loadfile tests/parity "$@"
