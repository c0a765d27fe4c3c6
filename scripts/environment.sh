# shellcheck shell=bash disable=SC1091
# Sourced by demo.sh, test.sh and parity.sh with the extras to install ("demo").
# Uses the active virtual environment, or makes $venv (default .venv); installs
# only when setup.py or constraints.txt have changed since the last time.

find_python() {
  for candidate in python3.11 python3.12 python3.13 python3; do
    if "$candidate" -c \
      'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
      2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11, 3.12 or 3.13 found; install one" >&2
  return 1
}

if [ -z "${VIRTUAL_ENV:-}" ]; then
  venv="${venv:-.venv}"
  if [ ! -x "$venv/bin/python" ]; then
    "$(find_python)" -m venv "$venv"
  fi
  . "$venv/bin/activate"
fi

stamp="$VIRTUAL_ENV/.paligemma-$1-$(cat setup.py constraints.txt | cksum | cut -d' ' -f1)"
if [ ! -e "$stamp" ]; then
  echo "installing the pinned dependencies into $VIRTUAL_ENV"
  python -m pip install --quiet --disable-pip-version-check \
    --constraint constraints.txt --editable ".[$1]"
  touch "$stamp"
fi
