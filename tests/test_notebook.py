"""Notebooks are stored clean, and run from top to bottom as they stand."""

import ast
import base64
import copy
import importlib.util
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import types

import nbclient
import nbformat
import numpy as np
import pytest
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from PIL import Image

from paligemma.data import image_files
from scripts import link_notebooks
from tests.scripts import photographed

ROOT = pathlib.Path(__file__).parents[1]
# What cells have to say, and which have to show a picture.
FINETUNE, DETECT = "finetune_paligemma", "detect_and_segment"
SIGLIP = "finetune_siglip"
SAID = {
  FINETUNE: {
    "memory": r"GiB needed, .* fits$",
    "after": r"val/exact_match: \d\.\d+ before, \d\.\d+ after",
    "ask": r"^answer en what number is written here\? -> \d$",
    "save": r"(\d+) of \1 answers are the same",
  },
  DETECT: {
    "data": r"<loc\d{4}>.* \d",
    "train": r"memory",
    "after": r"detection/AP50: \d\.\d+ before, \d\.\d+ at its best",
    "ask": r"^predictions: 1, boxes: \d",
  },
  SIGLIP: {
    "data": r"32 classes: black circle, ",
    "train": r"memory",
    "after": r"zero_shot/accuracy: \d\.\d+ before, \d\.\d+ at its best",
    "ask": r"^\d\.\d+ [a-z]+ [a-z]+$",
  },
}
SHOWN = {
  FINETUNE: ("look", "before", "train", "after", "ask"),
  DETECT: ("data", "after", "ask"),
  SIGLIP: ("data", "ask"),
}
NOTEBOOKS = {name: ROOT / f"configs/{name}.ipynb" for name in SAID}
SECONDS = 600  # a cell may take before it counts as stuck


class ThisPython(KernelSpecManager):
  """Starts the interpreter that runs the tests, whatever is installed."""

  def get_kernel_spec(self, kernel_name):
    argv = [sys.executable, "-m", "ipykernel_launcher"]
    return KernelSpec(
      argv=[*argv, "-f", "{connection_file}"], display_name=kernel_name
    )


def code_cells(notebook):
  return {c.id: c for c in notebook.cells if c.cell_type == "code"}


def tags(cell):
  return cell.metadata.get("tags", [])


def run(notebook, folder):
  """Runs all cells in place, in a folder outside of the checkout."""
  environment = {
    # The kernel is to be that of a user: not with what conftest asks XLA for.
    **{k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
    "JAX_PLATFORMS": "cpu",
    "IPYTHONDIR": str(folder / "ipython"),
  }
  client = nbclient.NotebookClient(
    notebook,
    timeout=SECONDS,
    resources={"metadata": {"path": str(folder)}},
  )
  client.km = AsyncKernelManager(
    kernel_spec_manager=ThisPython(),
    connection_file=str(folder / "kernel.json"),
    transport="ipc",
  )
  client.execute(env=environment)


def set_parameter(notebook, name, value):
  """Writes another value behind `name =` in a cell tagged "parameters"."""
  line = re.compile(rf"^{name} = .*?(?=  # @param|$)", re.MULTILINE)
  cells = [c for c in notebook.cells if "parameters" in tags(c)]
  (cell,) = [c for c in cells if line.search(c.source)]
  cell.source = line.sub(lambda _: f"{name} = {value!r}", cell.source)


def problems(notebook, name):
  """What is wrong with a notebook that was run; empty if nothing is."""
  said, shown = SAID[name], SHOWN[name]
  found = []
  cells = code_cells(notebook)
  for number, (name, cell) in enumerate(cells.items(), start=1):
    if cell.execution_count != number:
      found.append(f"{name}: execution count {cell.execution_count}")
    if any(output.output_type == "error" for output in cell.outputs):
      found.append(f"{name}: raised")
    if "output" in tags(cell) and not (text(cell) or images(cell)):
      found.append(f"{name}: no output")
  for name in shown:
    if not images(cells[name]):
      found.append(f"{name}: no picture")
    for image in images(cells[name]):
      if len(np.unique(image)) < 10:
        found.append(f"{name}: an empty picture")
  for name, pattern in said.items():
    if not re.search(pattern, text(cells[name]), re.MULTILINE):
      found.append(f"{name}: does not say {pattern}")
  return found


def text(cell):
  return "".join(o.text for o in cell.outputs if o.output_type == "stream")


def images(cell):
  """The pictures that a cell shows, as arrays."""
  data = (output.get("data", {}).get("image/png") for output in cell.outputs)
  return [
    np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"))
    for png in data
    if png
  ]


def execute(name, folder, **parameters):
  """A notebook after a run with its results in a folder."""
  notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
  for key, value in {"RESULTS": str(folder / "results"), **parameters}.items():
    set_parameter(notebook, key, value)
  run(notebook, folder)
  return notebook


@pytest.fixture(scope="module", params=NOTEBOOKS)
def executed(request, tmp_path_factory):
  """The name of a notebook, and what it is after a run as it stands."""
  folder = tmp_path_factory.mktemp("notebook")
  return request.param, execute(request.param, folder)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_is_stored_without_outputs(name):
  path = NOTEBOOKS[name]
  stored = json.loads(path.read_text())
  nbformat.validate(stored)
  assert (stored["nbformat"], stored["nbformat_minor"]) == (4, 5)
  for cell in stored["cells"]:
    assert cell.get("outputs", []) == []
    assert cell.get("execution_count") is None
  ids = [cell["id"] for cell in stored["cells"]]
  assert len(set(ids)) == len(ids)
  assert all(re.fullmatch("[a-z-]+", name) for name in ids), ids
  # As Jupyter writes it, so that an edit there changes only what was edited.
  assert path.read_text() == (
    json.dumps(stored, indent=1, ensure_ascii=False) + "\n"
  )


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_defines_no_model(name):
  source = "\n".join(
    re.sub("^%.*", "", cell.source, flags=re.MULTILINE)
    for cell in code_cells(nbformat.read(NOTEBOOKS[name], 4)).values()
  )
  nodes = list(ast.walk(ast.parse(source)))
  assert not [n.name for n in nodes if isinstance(n, ast.ClassDef)]
  used = {
    n.value.id
    for n in nodes
    if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)
  }
  assert not used & {"jnp", "nn", "flax", "optax"}


def test_they_install_alike():
  cells = {
    code_cells(nbformat.read(path, as_version=4))["install"].source
    for path in NOTEBOOKS.values()
  }
  assert len(cells) == 1


def test_all_name_the_address_of_setup_py(tmp_path):
  shutil.copy(ROOT / "setup.py", tmp_path)
  for path in [*NOTEBOOKS.values(), ROOT / "docs/notebooks.md"]:
    (tmp_path / path.parent.name).mkdir(exist_ok=True)
    shutil.copy(path, tmp_path / path.parent.name)
  stale = "run python -m scripts.link_notebooks"
  assert link_notebooks.link_notebooks(tmp_path) == [], stale
  text = (ROOT / "setup.py").read_text()
  url = re.search(r'url="https://github.com/(.+)"', text)[1]
  (tmp_path / "setup.py").write_text(text.replace(url, "you/fork"))
  assert len(link_notebooks.link_notebooks(tmp_path)) == len(NOTEBOOKS) + 1
  for path in tmp_path.glob("*/*"):
    assert url not in path.read_text()
    # Once in the cell and once in the badge; a badge each in the document.
    times = 2 if path.suffix == ".ipynb" else len(NOTEBOOKS)
    assert path.read_text().count("/you/fork") == times
  (tmp_path / "setup.py").write_text("")
  with pytest.raises(ValueError, match=r"setup.py: no line url=\"https"):
    link_notebooks.link_notebooks(tmp_path)


@pytest.mark.parametrize("gpu", [None, "cuda12", "cuda13"])
def test_on_colab_it_installs_and_keeps_to_drive(tmp_path, monkeypatch, gpu):
  """The cell, where google.colab is loaded and the project is not installed."""
  cells = code_cells(nbformat.read(NOTEBOOKS[DETECT], as_version=4))
  drive, commands = tmp_path / "MyDrive", []
  colab = types.ModuleType("google.colab")
  colab.drive = types.SimpleNamespace(mount=lambda path: drive.mkdir())
  monkeypatch.setitem(sys.modules, "google.colab", colab)
  monkeypatch.setattr(
    importlib.util,
    "find_spec",
    lambda name: True if name == f"jax_{gpu}_plugin" else None,
  )
  monkeypatch.setattr(shutil, "which", lambda name: gpu and f"/bin/{name}")

  def start(command, check):
    assert check
    commands.append(command)
    if command[0] == "git":
      pathlib.Path(command[-1]).mkdir()

  monkeypatch.setattr(subprocess, "run", start)
  monkeypatch.setattr(sys, "path", [*sys.path])
  monkeypatch.chdir(tmp_path)
  source = cells["install"].source.replace("/content/drive/MyDrive", str(drive))
  exec(source, found := {})
  clone, pip = commands
  root = tmp_path / "paligemma-jax"
  assert clone[:2] == ["git", "clone"]
  assert clone[-1] == str(root) == str(pathlib.Path.cwd())
  jax = [f"jax[{gpu}]"] if gpu else []
  assert pip[-2 - len(jax) :] == ["--editable", f"{root}[demo,hub]", *jax]
  assert found["WORK"] == drive / "paligemma"
  assert (drive / "paligemma").is_dir()


def test_every_cell_runs_and_shows_what_it_should(executed):
  name, notebook = executed
  assert problems(notebook, name) == []


def test_the_model_has_learned(executed):
  name, notebook = executed
  said = text(code_cells(notebook)["after"])
  found = re.search(r": (\S+) before, (\S+) (?:after|at its best)", said)
  before, after = map(float, found.groups())
  assert before < after
  assert after >= {FINETUNE: 0.9, DETECT: 0.5, SIGLIP: 0.9}[name]


def test_a_zip_of_roboflow_and_a_photo(tmp_path):
  photographed.export(tmp_path / "slates", 6)
  zipped = shutil.make_archive(tmp_path / "mine", "zip", tmp_path / "slates")
  photo = next((tmp_path / "slates/train").glob("*.jpg"))
  notebook = execute(DETECT, tmp_path, ZIP=zipped, PHOTO=str(photo))
  cells = code_cells(notebook)
  assert "detect digits -> <loc" in text(cells["data"])
  assert re.search(r"^predictions: 1,", text(cells["ask"]), re.MULTILINE)
  (drawn,) = images(cells["ask"])
  assert drawn.shape[:2] == image_files.decode(photo).shape[:2]


@pytest.mark.parametrize(
  ("name", "damage", "problem"),
  [
    ("data", {"execution_count": None}, "data: execution count None"),
    ("ask", {"outputs": []}, "ask: no output"),
    ("ask", {"outputs": []}, "ask: no picture"),
    ("after", {"outputs": []}, "after: does not say"),
  ],
)
def test_what_went_wrong_is_seen(executed, name, damage, problem):
  notebook, ran = executed
  damaged = copy.deepcopy(ran)
  code_cells(damaged)[name].update(damage)
  assert any(line.startswith(problem) for line in problems(damaged, notebook))
