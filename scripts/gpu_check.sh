#!/usr/bin/env bash
# Measures on one GPU what the docs state; one JSON line for each check, see
# scripts/gpu_check.py.
#
#   bash scripts/gpu_check.sh --pack       fills wheels/, where there is a network
#   bash scripts/gpu_check.sh              on the GPU, 8 minutes at most
#   bash scripts/gpu_check.sh --dry_run    with a tiny model, on any machine
#
# The GPU needs Python with a JAX that uses it; the other packages are installed
# from wheels/ (made for $PYTHON_VERSION, default 3.12) where they are missing.
set -euo pipefail
cd "$(dirname "$0")/.."
readonly SECONDS_IN_ALL=460 SECONDS_OF_A_CHECK=110

if [ "${1:-}" = --pack ]; then
  version="${PYTHON_VERSION:-3.12}"
  python -c 'import re; print(*re.findall(r"^    \"(.+?)\",", open("setup.py")
    .read().split("install_requires=[")[1].split("\n  ],")[0], re.M), sep="\n")' \
    > /tmp/requirements.$$
  python -m pip download --quiet --dest wheels --only-binary=:all: \
    --python-version "$version" --constraint constraints.txt \
    --requirement /tmp/requirements.$$
  rm -f /tmp/requirements.$$ # and what every JAX brings with it
  rm -f wheels/{jax,jaxlib,ml_dtypes,numpy,opt_einsum,scipy}-*.whl
  du -sh wheels
  exit
fi

if [ -d wheels ]; then
  # Without dependencies: nothing that the image has is replaced.
  python - << 'END' | xargs --no-run-if-empty \
    python -m pip install --quiet --no-deps --no-index
import importlib.metadata, pathlib
for wheel in pathlib.Path("wheels").glob("*.whl"):
  try:
    importlib.metadata.version(wheel.name.split("-")[0].replace("_", "-"))
  except importlib.metadata.PackageNotFoundError:
    print(wheel)
END
fi

if [ "${1:-}" = --dry_run ]; then
  export XLA_FLAGS="--xla_backend_optimization_level=0 ${XLA_FLAGS:-}"
  exec python -m scripts.gpu_check --dry_run
fi
names="$(python -m scripts.gpu_check --list)"
for name in $names; do
  left=$((SECONDS_IN_ALL - SECONDS))
  if [ "$left" -lt 20 ]; then
    echo "{\"check\": \"$name\", \"skipped\": \"out of time\"}"
    continue
  fi
  limit=$((left < SECONDS_OF_A_CHECK ? left : SECONDS_OF_A_CHECK))
  timeout "$limit" python -m scripts.gpu_check "$name" ||
    echo "{\"check\": \"$name\", \"failed\": $?}"
done
