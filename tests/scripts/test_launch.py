"""Launchers: what they ask of gcloud and srun, which are made up here."""

import os
import pathlib
import shlex
import subprocess

import kubernetes_validate
import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "scripts/launch"
ARGUMENTS = ["--config", "c.py:a=1,b=2", "--workdir", "/shared/my run"]


@pytest.fixture
def run(tmp_path):
  """Runs a launcher; returns the result and the calls of a made-up tool."""

  def run(script, tool, body, *arguments, **variables):
    calls = tmp_path / "calls"
    program = tmp_path / tool
    program.write_text(
      f'#!/bin/bash\n{{ printf "%s\\0" "$@"; echo; }} >> {calls}\n{body}\n'
    )
    program.chmod(0o755)
    done = subprocess.run(
      ["bash", LAUNCH / script, *arguments],
      env={"PATH": f"{tmp_path}:{os.environ['PATH']}", **variables},
      capture_output=True,
      text=True,
      check=False,
      timeout=60,
    )
    text = calls.read_text() if calls.exists() else ""
    return done, [call.split("\0") for call in text.split("\0\n")[:-1]]

  return run


@pytest.mark.parametrize(("tasks", "ids"), [("8", ""), ("1", "0,1,2")])
def test_slurm(run, tasks, ids):
  done, calls = run(
    "slurm.sbatch",
    "srun",
    'echo "ids=${JAX_LOCAL_DEVICE_IDS:-}"',
    *ARGUMENTS,
    SLURM_NTASKS_PER_NODE=tasks,
    SLURM_GPUS_ON_NODE="3",
  )
  assert (done.returncode, done.stdout) == (0, f"ids={ids}\n"), done.stderr
  (call,) = calls
  start = call.index("python")
  program = ["python", "-m", "trainers.train", "--distributed"]
  assert call[start:] == [*program, *ARGUMENTS]
  assert "--gpu-bind=none" in call[:start]


GCLOUD = """
case "$*" in
  *describe*) if [ -e "$0.made" ]; then echo "$STATE"; else exit 1; fi ;;
  *create*) touch "$0.made" ;;
esac
"""
SLICE = {"ZONE": "z", "TYPE": "v5litepod-16", "RUNTIME": "r"}


def test_tpu(run):
  for _ in range(2):
    done, calls = run(
      "tpu.sh", "gcloud", GCLOUD, "mine", *ARGUMENTS, STATE="ACTIVE", **SLICE
    )
    assert done.returncode == 0, done.stderr
  assert all("--zone=z" in call for call in calls)
  what = [" ".join(call[2:4]) for call in calls]
  assert what.count("queued-resources create") == 1
  assert what[-2:] == ["tpu-vm scp", "tpu-vm ssh"]
  (create,) = (call for call in calls if call[3] == "create")
  assert create[-2:] == [
    "--accelerator-type=v5litepod-16",
    "--runtime-version=r",
  ]
  assert "--worker=all" in calls[-1]
  *_, last = calls[-1][-1].splitlines()
  program = "exec .venv/bin/python -m trainers.train --distributed"
  assert shlex.split(last) == [*program.split(), *ARGUMENTS]


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED", "SUSPENDING"])
def test_a_slice_that_will_not_come(run, state):
  done, _ = run("tpu.sh", "gcloud", GCLOUD, "mine", STATE=state, **SLICE)
  assert done.returncode == 1
  said = f"error: mine is {state}; delete it and start again\n"
  assert done.stderr == said


@pytest.mark.parametrize("name", SLICE)
def test_what_a_slice_needs(run, name):
  given = {**SLICE, "STATE": "ACTIVE"}
  del given[name]
  done, _ = run("tpu.sh", "gcloud", GCLOUD, "mine", **given)
  assert done.returncode != 0
  assert f"{name}: expected a" in done.stderr


def test_gke():
  jobs = yaml.safe_load((LAUNCH / "gke.yaml").read_text())
  assert jobs["kind"] == "JobSet"
  (slice_,) = jobs["spec"]["replicatedJobs"]
  job = slice_["template"]["spec"]
  pod = job["template"]["spec"]
  (container,) = pod["containers"]
  chips = int(container["resources"]["limits"]["google.com/tpu"])
  topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
  width, height = map(int, topology.split("x"))
  assert job["parallelism"] == job["completions"] == width * height // chips
  assert container["command"][:3] == ["paligemma", "train", "--distributed"]
  # The schema of a JobSet is not there, but that of the job in it.
  spec = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {}, "spec": job}
  newest = kubernetes_validate.latest_version()
  kubernetes_validate.validate(spec, newest, strict=True)
  mounted = [mount["name"] for mount in container["volumeMounts"]]
  assert mounted == [volume["name"] for volume in pod["volumes"]]


def test_serve():
  text = (LAUNCH / "serve.yaml").read_text()
  deployment, service = yaml.safe_load_all(text)
  newest = kubernetes_validate.latest_version()
  for made in (deployment, service):
    kubernetes_validate.validate(made, newest, strict=True)
  template = deployment["spec"]["template"]
  labels = template["metadata"]["labels"]
  assert deployment["spec"]["selector"]["matchLabels"] == labels
  assert service["spec"]["selector"] == labels
  pod = template["spec"]
  (container,) = pod["containers"]
  (port,) = container["ports"]
  command = dict(x.partition("=")[::2] for x in container["command"])
  assert command["--port"] == str(port["containerPort"])
  assert {p["targetPort"] for p in service["spec"]["ports"]} == {port["name"]}
  probes = [
    container[f"{x}Probe"]["httpGet"] for x in ("liveness", "readiness")
  ]
  assert [x["path"] for x in probes] == ["/healthz", "/readyz"]
  mounts = {x["name"]: x["mountPath"] for x in container["volumeMounts"]}
  assert command["--token_file"] == f"{mounts['token']}/token"
  assert command["--ckpt"].startswith(f"{mounts['weights']}/")
  assert [x["name"] for x in pod["volumes"]] == list(mounts)


def test_hadolint():
  done = subprocess.run(
    ["hadolint", ROOT / "Dockerfile"], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout


def test_shellcheck():
  scripts = [*ROOT.glob("scripts/**/*.sh"), *ROOT.glob("scripts/**/*.sbatch")]
  assert len(scripts) >= 6
  done = subprocess.run(
    ["shellcheck", *scripts], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stdout
