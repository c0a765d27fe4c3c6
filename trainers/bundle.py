"""What a program ran with: command, versions, code, hardware, hashes of files.

bundle.json of a run holds a bundle for each start, with the step it began at:

    {"starts": [{"step": 0, "id": "3f9c12ab04de", "started": "2026-11-30T...",
                 "command": "python -m trainers.train ...", ...}]}

Equal ids are equal circumstances, as id is a hash of all but step and time.
"""

import datetime
import hashlib
import json
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
from etils import epath

import paligemma
from paligemma import disk
from paligemma.checkpoints import formats
from trainers import inputs, workdir
from trainers.plan import Plan

NAME = "bundle.json"
ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = (
  *("flax", "grain", "jax", "jaxlib", "ml_collections", "ml_dtypes", "numpy"),
  *("optax", "orbax-checkpoint", "pillow", "qwix", "sentencepiece"),
  *("tensorstore", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin"),
)
# Compiler flags, which no other file tells.
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
_GIT_SECONDS = 20

_SECRET_NAME = (
  r"(?<![a-z])(?:token|secret|password|passwd|pwd|credentials?|authorization"
  r"|(?:api|access|private|secret|auth|wandb)[-_]?key|(?<![a-z0-9][-_])key)"
)
# A flag, whose value is all that follows, and secrets within an argument.
_SECRET_FLAG = re.compile(rf"(?is)(-*(?:\w+[-_.])*{_SECRET_NAME})(=.*)?")
_SECRETS = (
  re.compile(
    rf"(?i)({_SECRET_NAME}['\"]?\s*[=:]\s*['\"]?(?:bearer\s+)?)[^\s,;&'\"]+"
  ),
  re.compile(r"(://)[^/\s@]+(?=@)"),  # of a user, in an address
  re.compile(r"()\b(?:hf|gh[pousr]|github_pat|glpat|sk|wandb_v1)[-_]\w{16,}"),
)


def describe(
  files: Mapping[str, str | None], seed: int, **more: Any
) -> dict[str, Any]:
  """Returns the bundle of this program, with an id of 12 hexadecimal digits.

  Args:
    files: fingerprints of data, tokenizer and weights, by name.
    seed: of all that is random.
    **more: as JSON values.
  """
  device = jax.devices()[0]
  bundle = {
    "command": command(sys.orig_argv),
    "variables": {x: os.environ[x] for x in VARIABLES if x in os.environ},
    "python": platform.python_version(),
    "packages": {"paligemma": paligemma.__version__, **_versions()},
    "git": git(ROOT),
    "hardware": {
      "platform": device.platform,
      "device": device.device_kind,
      "devices": jax.device_count(),
      "processes": jax.process_count(),
      "cpu": _cpu(),
      "cores": os.cpu_count(),
    },
    "files": dict(files),
    "seed": seed,
    **more,
  }
  text = json.dumps(bundle, sort_keys=True)
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  name = hashlib.sha256(text.encode()).hexdigest()[:12]
  return {"id": name, "started": now, **bundle}


def of_start(
  plan: Plan,
  folder: epath.Path,
  evaluators: Sequence[inputs.Scheduled],
  step: int,
) -> dict[str, Any] | None:
  """Adds the bundle of a start of a run to its bundle.json, in process 0.

  Args:
    plan, folder, evaluators: of the run.
    step: that it begins at.

  Returns:
    The bundle, None in other processes.

  Raises:
    ValueError: bundle.json is damaged; names it.
  """
  if jax.process_index() != 0:
    return None
  config = plan.config
  sources = zip(config.train.sources, plan.sources, strict=True)
  bundle = describe(
    workdir.fingerprints(workdir.as_json(config)),
    config.seed,
    examples={f"train.{name}": len(source) for name, (source, _) in sources}
    | {f"evals.{e.name}": len(e.source) for e, _ in evaluators},
  )
  content = {"starts": [*_starts(folder), {"step": step, **bundle}]}
  disk.write(folder / NAME, f"{json.dumps(content, indent=2)}\n")
  return bundle


def of_run(checkpoint: epath.PathLike) -> str | None:
  """Returns the id of the last start of the run that a checkpoint is of."""
  try:
    path = epath.Path(formats.open(checkpoint).path)
    for folder in list(path.parents)[:2]:
      if starts := _starts(folder):
        return starts[-1]["id"]
  except (LookupError, OSError, TypeError, ValueError):
    pass  # of another program, or damaged
  return None


def command(arguments: Sequence[str]) -> str:
  """Returns a command as a line of a shell, without secrets.

  What follows a name such as token, password or api_key, names a user in an
  address, or looks like a key of a known service, becomes ***.
  """
  shown, is_secret = [], False
  for argument in arguments:
    flag = _SECRET_FLAG.fullmatch(argument)
    if is_secret:
      argument = "***"
    elif flag and flag[2]:
      argument = f"{flag[1]}=***"
    for secret in _SECRETS:
      argument = secret.sub(r"\1***", argument)
    shown.append(argument)
    is_secret = bool(flag and not flag[2] and argument.startswith("-"))
  return shlex.join(shown)


def git(root: pathlib.Path) -> dict[str, Any] | None:
  """Returns the commit of a checkout, and whether its tree equals it.

  None of a folder that is no checkout, and where there is no git.
  """
  if not (root / ".git").exists():  # nor is that of a folder around it meant
    return None
  found = []
  for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain")):
    try:
      done = subprocess.run(
        ["git", "--no-optional-locks", "-C", str(root), *arguments],
        capture_output=True,
        text=True,
        timeout=_GIT_SECONDS,
      )
    except (OSError, subprocess.TimeoutExpired):
      return None
    if done.returncode:
      return None
    found.append(done.stdout.strip())
  return {"commit": found[0], "is_clean": not found[1]}


def _starts(folder):
  """Returns the list in bundle.json of a run, empty without the file."""
  found = workdir.read(folder / NAME) or {"starts": []}
  if not isinstance(found.get("starts"), list):
    raise ValueError(
      f'{folder / NAME}: expected {{"starts": [...]}}; put back what the run '
      "wrote there, or delete it"
    )
  return found["starts"]


def _versions():
  found = {}
  for name in PACKAGES:
    try:
      found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      continue
  return found


def _cpu():
  """Returns the name of the processor, as far as the system tells it."""
  try:
    text = pathlib.Path("/proc/cpuinfo").read_text()
  except OSError:
    text = ""
  named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
  return named[1] if named else platform.processor() or platform.machine()
