"""The command `paligemma`, and what an installation of it holds."""

import ast
import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import paligemma
from paligemma import __main__ as command

ROOT = pathlib.Path(__file__).parents[1]


def run(*arguments, folder=None, path=ROOT):
  return subprocess.run(
    [sys.executable, *arguments],
    cwd=folder,
    env={"PYTHONPATH": str(path), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
  )


def in_the_image():
  """What the Dockerfile copies out of a checkout to install the package."""
  lines = re.findall(
    r"^COPY (\w.*) \S+$", (ROOT / "Dockerfile").read_text(), re.M
  )
  return [name for line in lines for name in line.split()]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
  """The folder of packages that pip would copy to site-packages."""
  source = tmp_path_factory.mktemp("source")
  for name in in_the_image():
    if (ROOT / name).is_dir():
      ignored = shutil.ignore_patterns("__pycache__")
      shutil.copytree(ROOT / name, source / name, ignore=ignored)
    else:
      shutil.copy(ROOT / name, source)
  folder = tmp_path_factory.mktemp("site-packages")
  done = run("setup.py", "-q", "build", f"--build-lib={folder}", folder=source)
  assert done.returncode == 0, done.stderr
  return folder


def test_docker_is_sent_what_the_image_copies():
  first, *allowed, last = (ROOT / ".dockerignore").read_text().splitlines()
  assert (first, last) == ("*", "**/__pycache__")
  assert allowed == [f"!{name}" for name in sorted(in_the_image())]


@pytest.mark.parametrize("name", command.COMMANDS)
def test_commands_have_a_main(name):
  module, _ = command.COMMANDS[name]
  path = ROOT / f"{module.replace('.', '/')}.py"
  nodes = ast.parse(path.read_text()).body
  assert "main" in {getattr(node, "name", None) for node in nodes}


def test_help_lists_the_commands_and_needs_no_jax():
  code = (
    "import sys; from paligemma import __main__\n"
    "try: __main__.main()\n"
    "finally: print('JAX' if 'jax' in sys.modules else 'no JAX')"
  )
  done = run("-c", code, "--help")
  assert done.returncode == 0, done.stderr
  assert done.stdout.endswith("no JAX\n")
  for name, (_, text) in command.COMMANDS.items():
    assert re.search(rf"^  {name} +{re.escape(text)}$", done.stdout, re.M)


def test_version():
  done = run("-m", "paligemma", "--version")
  assert done.stdout == f"{paligemma.__version__}\n"


def test_an_unknown_command_names_the_nearest():
  done = run("-m", "paligemma", "trian", "--help")
  assert done.returncode == 1
  names = ", ".join(sorted(command.COMMANDS))
  assert done.stderr == (
    f'error: unknown command "trian", expected one of: {names}. '
    'Did you mean "train"?\n'
  )


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "the following arguments are required: command; paligemma --help li"),
    (["score"], "the following arguments are required: --predictions, --conf"),
    (["convert", "a", "b", "--format=c"], "argument --format: invalid choice"),
  ],
)
def test_what_is_no_command_line_ends_in_one_line(arguments, message):
  done = run("-m", "paligemma", *arguments)
  assert (done.returncode, done.stdout) == (1, "")
  (line,) = done.stderr.splitlines()
  assert line.startswith(f"error: {message}")
  assert " --help " in line


def test_arguments_are_handed_over(tmp_path):
  done = run("-m", "paligemma", "score", "--help", folder=tmp_path)
  assert done.stdout.startswith("usage: paligemma score [-h] --predictions")
  done = run("-m", "paligemma", "train", "--config=no.py", folder=tmp_path)
  assert done.returncode == 1
  starting, error = done.stderr.splitlines()
  assert starting == "starting: importing JAX"
  assert error.startswith("error: --config no.py: no such file, expected")


@pytest.mark.parametrize("name", ["train", "evaluate", "predict", "ask"])
def test_the_first_line_comes_before_jax(name):
  module, _ = command.COMMANDS[name]
  code = (
    "import runpy, sys; sys.modules['jax'] = None\n"
    f"runpy.run_module('{module}', run_name='__main__')"
  )
  done = run("-c", code)
  assert done.stderr.startswith("starting: importing JAX\nTraceback")
  assert "import of jax halted" in done.stderr


def test_an_installation_adds_one_package(installed):
  assert [path.name for path in installed.iterdir()] == ["paligemma"]
  for name in ("assets/tiny.npz", "py.typed"):
    assert (installed / "paligemma" / name).is_file()
  for top in ("configs", "trainers", "scripts"):
    for path in (ROOT / top).rglob("*.py"):
      name = path.relative_to(ROOT)
      assert (installed / "paligemma/programs" / name).is_file(), name


def test_an_installation_trains_with_a_config_of_the_package(
  installed, tmp_path
):
  lines = []
  for i in range(7):
    pixels = np.full((37, 41, 3), 31 * i, np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    lines.append({"image": f"{i}.png", "prefix": "digit?", "suffix": f"{i}"})
  data = "\n".join(map(json.dumps, lines)) + "\n"
  (tmp_path / "mine.jsonl").write_text(data)
  name = "configs/transfers/digits.py"
  done = run(
    *("-m", "paligemma", "train", "--dry_run", "--config"),
    f"{name}:train=mine.jsonl,val=mine.jsonl",
    folder=tmp_path,
    path=installed,
  )
  assert done.returncode == 0, done.stderr
  found = installed / "paligemma/programs" / name
  assert f"--config {name}: not here, using {found}\n" in done.stderr
  assert "train.main" in done.stdout
