"""The notebook is stored clean, and runs from top to bottom as it stands."""

import ast
import base64
import copy
import io
import json
import os
import pathlib
import re
import sys

import nbclient
import nbformat
import numpy as np
import pytest
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from PIL import Image

PATH = pathlib.Path(__file__).parents[1] / "configs/finetune_paligemma.ipynb"
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


def problems(notebook):
  """What is wrong with a notebook that was run; empty if nothing is."""
  found = []
  cells = code_cells(notebook)
  for number, (name, cell) in enumerate(cells.items(), start=1):
    if cell.execution_count != number:
      found.append(f"{name}: execution count {cell.execution_count}")
    if any(output.output_type == "error" for output in cell.outputs):
      found.append(f"{name}: raised")
    if "output" in tags(cell) and not (text(cell) or images(cell)):
      found.append(f"{name}: no output")
  for name in ("look", "before", "train", "after"):
    if not images(cells[name]):
      found.append(f"{name}: no picture")
    for image in images(cells[name]):
      if len(np.unique(image)) < 10:
        found.append(f"{name}: an empty picture")
  for name, pattern in {
    "memory": r"GiB needed, .* fits$",
    "after": r"val/exact_match: \d\.\d+ before, \d\.\d+ after",
    "save": r"(\d+) of \1 answers are the same",
  }.items():
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


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
  folder = tmp_path_factory.mktemp("notebook")
  notebook = nbformat.read(PATH, as_version=4)
  set_parameter(notebook, "RESULTS", str(folder / "results"))
  run(notebook, folder)
  return notebook


def test_it_is_stored_without_outputs():
  stored = json.loads(PATH.read_text())
  nbformat.validate(stored)
  assert (stored["nbformat"], stored["nbformat_minor"]) == (4, 5)
  for cell in stored["cells"]:
    assert cell.get("outputs", []) == []
    assert cell.get("execution_count") is None
  ids = [cell["id"] for cell in stored["cells"]]
  assert len(set(ids)) == len(ids)
  assert all(re.fullmatch("[a-z-]+", name) for name in ids), ids
  # As Jupyter writes it, so that an edit there changes only what was edited.
  assert PATH.read_text() == (
    json.dumps(stored, indent=1, ensure_ascii=False) + "\n"
  )


def test_it_defines_no_model():
  source = "\n".join(
    re.sub("^%.*", "", cell.source, flags=re.MULTILINE)
    for cell in code_cells(nbformat.read(PATH, as_version=4)).values()
  )
  nodes = list(ast.walk(ast.parse(source)))
  assert not [n.name for n in nodes if isinstance(n, ast.ClassDef)]
  used = {
    n.value.id
    for n in nodes
    if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)
  }
  assert not used & {"jnp", "nn", "flax", "optax"}


def test_every_cell_runs_and_shows_what_it_should(executed):
  assert problems(executed) == []


def test_the_model_has_learned(executed):
  said = text(code_cells(executed)["after"])
  found = re.search(r"exact_match: (\S+) before, (\S+) after", said)
  before, after = map(float, found.groups())
  assert before < after
  assert after >= 0.9


@pytest.mark.parametrize(
  ("name", "damage", "problem"),
  [
    ("data", {"execution_count": None}, "data: execution count None"),
    ("look", {"outputs": []}, "look: no output"),
    ("save", {"outputs": []}, "save: does not say"),
  ],
)
def test_what_went_wrong_is_seen(executed, name, damage, problem):
  damaged = copy.deepcopy(executed)
  code_cells(damaged)[name].update(damage)
  assert any(line.startswith(problem) for line in problems(damaged))
