#!/usr/bin/env bash
# Trains on a TPU slice of Google Cloud: asks for it as a queued resource, waits,
# installs the last commit of this checkout on every host, and starts one
# process on each.
#
#   ZONE=us-west4-a TYPE=v5litepod-16 RUNTIME=v2-alpha-tpuv5-lite \
#     bash scripts/launch/tpu.sh NAME --config CONFIG --workdir RUN
#
# All hosts must see data and workdir at the same path. The same command uses a
# slice that is there, and resumes the run. The slice costs until it is deleted:
#
#   gcloud compute tpus queued-resources delete NAME --zone=ZONE --force
set -euo pipefail
name="${1:?expected the name of the slice}"
shift
where=(--zone="${ZONE:?expected a zone, such as us-west4-a}")
tpus=(gcloud compute tpus)
cd "$(dirname "$0")/../.."

state() {
  "${tpus[@]}" queued-resources describe "$name" "${where[@]}" \
    --format='value(state.state)'
}

if ! state >/dev/null 2>&1; then
  "${tpus[@]}" queued-resources create "$name" "${where[@]}" \
    --node-id="$name" \
    --accelerator-type="${TYPE:?expected a type, such as v5litepod-16}" \
    --runtime-version="${RUNTIME:?expected a version of the runtime}"
fi
until [ "$(state)" = ACTIVE ]; do
  case "$(state)" in
    FAILED | SUSPEND*)
      echo "error: $name is $(state); delete it and start again" >&2
      exit 1
      ;;
  esac
  sleep "${POLL_SECONDS:-30}"
done

archive="$(mktemp)"
trap 'rm -f "$archive"' EXIT
git archive --format=tar.gz --output="$archive" HEAD
"${tpus[@]}" tpu-vm scp "$archive" "$name:paligemma.tar.gz" "${where[@]}" \
  --worker=all
# The runtime has Python 3.10; uv brings a later one.
# shellcheck disable=SC2016  # to be expanded on the hosts
install='set -e
mkdir -p paligemma && tar -xzf paligemma.tar.gz -C paligemma && cd paligemma
pip3 install --quiet --user uv
test -d .venv || ~/.local/bin/uv venv --quiet --python 3.12
~/.local/bin/uv pip install --quiet -c constraints.txt -e ".[tpu]"'
"${tpus[@]}" tpu-vm ssh "$name" "${where[@]}" --worker=all \
  --command="$install
exec .venv/bin/python -m trainers.train --distributed $(printf '%q ' "$@")"
