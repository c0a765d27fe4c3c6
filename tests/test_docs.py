"""README and docs: links lead somewhere, commands exist, examples run.

Every fenced block of bash or Python comes after one of these lines:

    <!-- run by tests/test_docs.py -->   `test_examples_run` runs it, over a
                                         little data
    <!-- run by tests/stress/own_photos.py -->   as that says
    <!-- run by .ci/run -->              its lines are lines of that script
    <!-- needs weights -->               why no test can run it
"""

import ast
import contextlib
import functools
import importlib.util
import io
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from paligemma import metrics
from paligemma.data import class_texts, sources
from paligemma.decoding import grammar, samplers
from scripts import import_data
from trainers import tasks

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = [
  "README.md",
  "CONTRIBUTING.md",
  *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md")),
  "configs/transfers/README.md",
  "paligemma/assets/README.md",
]
HERE = "tests/test_docs.py"
PHOTOS = "tests/stress/own_photos.py"
CI = ".ci/run"
EXAMPLES = 40  # of each data set that the examples run on

_BLOCK = re.compile(
  r"(?:^<!-- (?P<marker>.*?) -->\n)?"
  r"^```(?P<language>\w*)\n(?P<code>.*?)^```$",
  re.MULTILINE | re.DOTALL,
)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FILE = re.compile(
  r"`((?:paligemma|trainers|configs|scripts|tests|docs)/[\w./-]*)`"
)
_MODULE = re.compile(r"`((?:paligemma|trainers|configs|scripts)(?:\.\w+)+)`")
_DEFINES = re.compile(r"(add_argument|add_switch|\.DEFINE_\w+)$")
_STOP = re.compile(r"`([\w./]+\.py)`, `([\w.]+)`")


def read(document):
  return (ROOT / document).read_text()


def blocks(text):
  """Yields (marker, language, code) of every fenced block."""
  for match in _BLOCK.finditer(text):
    yield match["marker"], match["language"], match["code"]


def prose(text):
  return _BLOCK.sub("", text)


def anchors(text):
  """The anchors that GitHub gives to the headings of a document."""
  headings = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
  return {
    re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
    for heading in headings
  }


def broken_links(text, path):
  """The relative links of a document at `path` that lead nowhere."""
  broken = []
  for link in _LINK.findall(prose(text)):
    if "://" in link:
      continue
    file, _, anchor = link.partition("#")
    target = path.parent / file if file else path
    if not target.exists() or (
      anchor and anchor not in anchors(target.read_text())
    ):
      broken.append(link)
  return broken


def commands(text):
  """Yields each command line of ours in a document, as a list of words."""
  lines = []
  for _, language, code in blocks(text):
    if language == "bash":
      lines += code.replace("\\\n", "").splitlines()
  lines += re.findall(r"`([^`]+)`", prose(text))
  for line in lines:
    if re.match(r"(scripts|trainers)\.\w+ --", line):
      line = f"python -m {line}"
    if re.match(r"(python3? -m|bash) ", line):
      yield shlex.split(line, comments=True)


def problems(words):
  """What is wrong with a command line: a module, a file, a flag, a config."""
  if words[0] == "bash":
    return [] if (ROOT / words[1]).exists() else [f"no file {words[1]}"]
  module = words[2]
  if module.partition(".")[0] not in ("scripts", "trainers"):
    return [] if importlib.util.find_spec(module) else [f"no module {module}"]
  if not source_of(module).exists():
    return [f"no module {module}"]
  found = [
    f"{module} has no flag {flag}"
    for flag in (word.partition("=")[0] for word in words if word[:2] == "--")
    if flag.partition(".")[0] not in flags_of(module)
  ]
  with contextlib.suppress(ValueError):
    config, _, argument = words[words.index("--config") + 1].partition(":")
    overrides = [word[9:] for word in words if word.startswith("--config.")]
    found += config_problems(config, argument, overrides)
  return found


def source_of(module):
  return ROOT / f"{module.replace('.', '/')}.py"


@functools.cache
def flags_of(module):
  """The flags that a command defines, by itself or in what it imports."""
  tree = ast.parse(source_of(module).read_text())
  found = {"--help"}
  for node in ast.walk(tree):
    if isinstance(node, ast.Call) and _DEFINES.search(ast.unparse(node.func)):
      texts = [getattr(argument, "value", None) for argument in node.args]
      name = next((text for text in texts if isinstance(text, str)), "")
      is_flag = not ast.unparse(node.func).endswith("add_argument")
      if is_flag or name.startswith("--"):
        found.add(f"--{name.removeprefix('--')}")
    elif isinstance(node, ast.ImportFrom) and node.module:
      for name in (
        node.module,
        *(f"{node.module}.{a.name}" for a in node.names),
      ):
        path = source_of(name)
        ours = name.partition(".")[0] in ("scripts", "trainers")
        if ours and path.exists() and "__main__" not in path.read_text():
          found |= flags_of(name)
  return found


@functools.cache
def get_config(path):
  spec = importlib.util.spec_from_file_location("documented", ROOT / path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config


def config_problems(path, argument, overrides):
  if "..." in argument or not path.endswith(".py"):
    return []
  if not (ROOT / path).exists():
    return [f"no config {path}"]
  try:
    config = get_config(path)(argument or None)
  except ValueError as error:
    return [str(error)]
  found = []
  for override in overrides:
    value = config
    for key in override.partition("=")[0].split("."):
      if key not in value:
        found.append(f"{path} has no {override}")
        break
      value = value[key]
  return found


def definitions(path):
  """Names of the functions and classes of a file, with "Class.method"."""
  found = set()
  for node in ast.parse((ROOT / path).read_text()).body:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
      found.add(node.name)
    if isinstance(node, ast.ClassDef):
      methods = (n for n in node.body if isinstance(n, ast.FunctionDef))
      found.update(f"{node.name}.{method.name}" for method in methods)
  return found


def test_readme_is_one_screen():
  assert len(read("README.md").splitlines()) <= 150


@pytest.mark.parametrize("document", DOCUMENTS[2:])
def test_every_document_is_reached_and_says_for_whom_it_is(document):
  targets = {
    (ROOT / d).parent.joinpath(link.partition("#")[0]).resolve()
    for d in DOCUMENTS
    if d != document
    for link in _LINK.findall(read(d))
  }
  assert ROOT / document in targets, "no other document links to it"
  assert re.match(r"# .+\n\nFor ", read(document))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
  assert broken_links(read(document), ROOT / document) == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_are_named_exist(document):
  text = prose(read(document))
  named = [ROOT / name for name in _FILE.findall(text)]
  named += [
    source_of(name)
    for name in _MODULE.findall(text)
    if not name.endswith(".py")
  ]
  assert [str(path) for path in named if not path.exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_exist_with_their_flags_and_configs(document):
  wrong = {
    shlex.join(words): found
    for words in commands(read(document))
    if (found := problems(words))
  }
  assert wrong == {}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_extras_that_are_named_exist(document):
  (call,) = (
    node.value
    for node in ast.parse(read("setup.py")).body
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
  )
  (extras,) = (k.value for k in call.keywords if k.arg == "extras_require")
  known = {key.value for key in extras.keys}
  named = re.findall(r'(?:"\.|`)\[(\w+)\][`"]', read(document))
  assert set(named) <= known


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_says_who_runs_it(document):
  lines = [line.partition("#")[0].strip() for line in read(CI).splitlines()]
  for marker, language, code in blocks(read(document)):
    if language not in ("bash", "python"):
      continue
    assert marker is not None, f"no marker before:\n{code}"
    run, _, by = marker.partition("run by ")
    assert run or by in (HERE, PHOTOS, CI), f"unknown: {marker}"
    assert by or marker.startswith("needs "), f"unknown: {marker}"
    if by == CI:
      for line in code.splitlines():
        assert line.partition("#")[0].strip() in lines


@pytest.mark.parametrize(
  ("document", "table"),
  [
    ("docs/data.md", sources.SOURCES),
    ("docs/data.md", import_data.FORMATS),
    ("docs/decoding.md", samplers.SAMPLERS),
    ("docs/decoding.md", grammar.GRAMMARS),
    ("docs/evaluation.md", metrics.METRICS),
    ("docs/evaluation.md", tasks.TASKS["next_token"].evaluators),
    ("docs/siglip.md", tasks.TASKS["contrastive"].evaluators),
    ("docs/siglip.md", class_texts.TEMPLATES),
  ],
)
def test_every_choice_is_documented(document, table):
  text = prose(read(document))
  named = {name for name in table if re.search(rf"`\"?{name}\b", text)}
  assert named == set(table)


def test_what_is_wrong_is_found(tmp_path):
  (tmp_path / "b.md").write_text("# Big `B`, bold\n")
  text = "[a](b.md) [b](b.md#big-b-bold) [c](c.md) [d](b.md#small) [e](#no)"
  assert broken_links(text, tmp_path / "b.md") == ["c.md", "b.md#small", "#no"]
  text = """
Run `bash scripts/no.sh`, `python -m scripts.no`, `scripts.predict --no`, or
```bash
python -m trainers.train --config configs/transfers/forkme.py:ress=1 --work a
python -m scripts.evaluate --config configs/no.py --split=val # --no
python -m trainers.train --config configs/transfers/digits.py --dry_run \\
  --config.mesh.model=4 --config.mesh.modell=4
python -m pytest --anything
```
"""
  found = [problems(words) for words in commands(text)]
  assert found[0][0] == "trainers.train has no flag --work"
  assert found[0][1].startswith('unknown config argument "ress", expected')
  assert found[1:] == [
    ["no config configs/no.py"],
    ["configs/transfers/digits.py has no mesh.modell=4"],
    [],
    ["no file scripts/no.sh"],
    ["no module scripts.no"],
    ["scripts.predict has no flag --no"],
  ]


def ways():
  """The ways through the code in CONTRIBUTING.md: heading -> stops."""
  text = read("CONTRIBUTING.md").partition("\n## Who")[0]
  parts = re.split(r"^\*\*(.+)\*\*$", text, flags=re.MULTILINE)[1:]
  return {
    heading: re.findall(r"^\d+\. ", stops, re.MULTILINE)
    for heading, stops in zip(parts[::2], parts[1::2], strict=True)
  }


def test_ways_through_the_code_are_short_and_exist():
  assert [len(stops) <= 8 for stops in ways().values()] == [True] * 3
  stops = _STOP.findall(read("CONTRIBUTING.md").replace("\n   ", " "))
  assert len(stops) >= 20
  for path, name in stops:
    assert name in definitions(path), f"{path} has no {name}"


def test_the_table_of_rooms_is_that_of_the_rule():
  source = ast.parse(read("tests/test_house.py"))
  (table,) = (
    node.value
    for node in source.body
    if isinstance(node, ast.Assign)
    and ast.unparse(node.targets[0]) == "MAY_IMPORT"
  )
  expected = {
    key.value: ("*",)
    if isinstance(value, ast.Name)
    else ast.literal_eval(value)
    for key, value in zip(table.keys, table.values, strict=True)
  }
  found = {}
  for room, allowed in re.findall(
    r"^\| `([\w.]+)` \| [^|]+ \| (.+) \|$",
    read("CONTRIBUTING.md"),
    re.MULTILINE,
  ):
    top = room.partition(".")[0] in (
      "paligemma",
      "trainers",
      "scripts",
      "configs",
    )
    names = allowed.replace("everything in `paligemma`", "`*`")
    found[room if top else f"paligemma.{room}"] = tuple(
      re.findall(r"`([\w.*]+)`", names)
    )
  assert found == expected


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder like the checkout, with a little of the data examples read."""
  folder = tmp_path_factory.mktemp("checkout")
  for name in ("configs", "paligemma", "scripts", "trainers"):
    (folder / name).symlink_to(ROOT / name)
  rng = np.random.default_rng(0)
  for split in ("train", "test"):
    lines = []
    for i in range(EXAMPLES):
      path = folder / f"data/digits/{split}/{i:04}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      pixels = rng.integers(0, 256, (56, 56, 3), np.uint8)
      Image.fromarray(pixels).save(path)
      prompt = {"prefix": "answer en what digit is this?", "suffix": f"{i % 9}"}
      lines.append(json.dumps({"image": f"{split}/{i:04}.png", **prompt}))
    (folder / f"data/digits/{split}.jsonl").write_text("\n".join(lines) + "\n")
  coco = {"images": [], "annotations": [], "categories": []}
  coco["categories"].append({"id": 1, "name": "cat"})
  (folder / "images").mkdir()
  for i in range(EXAMPLES):
    pixels = rng.integers(0, 256, (37, 41, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f"images/{i}.png")
    coco["images"].append(
      {"id": i, "file_name": f"{i}.png", "height": 37, "width": 41}
    )
    coco["annotations"].append(
      {"id": i, "image_id": i, "category_id": 1, "bbox": [3, 5, 11, 13]}
    )
  (folder / "instances.json").write_text(json.dumps(coco))
  return folder


def examples(language):
  """Document -> its blocks that are run here; no block twice."""
  seen, found = set(), {}
  for document in DOCUMENTS:
    for marker, written_in, code in blocks(read(document)):
      if marker == f"run by {HERE}" and written_in == language:
        new = [line for line in code.splitlines() if line not in seen]
        if language == "bash":
          seen.update(new)
        found.setdefault(document, []).append("\n".join(new) + "\n")
  return found


def test_examples_run(folder):
  """In the order of the documents: later ones read what earlier ones wrote."""
  environment = {
    **os.environ,
    # One device, as a user has: with several nothing comes from the cache.
    "XLA_FLAGS": os.environ["XLA_FLAGS"]
    + " --xla_force_host_platform_device_count=1",
    "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
  }
  for document, codes in examples("bash").items():
    for code in filter(str.strip, codes):
      done = subprocess.run(
        ["bash", "-euc", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
      )
      said = f"{document}:\n{code}{done.stdout}{done.stderr}"
      assert done.returncode == 0, said
      assert "Traceback" not in done.stderr, said


@pytest.mark.parametrize("document", examples("python"))
def test_snippets_run(document, folder, monkeypatch):
  monkeypatch.chdir(folder)
  code = "\n".join(examples("python")[document])
  with contextlib.redirect_stdout(io.StringIO()):
    exec(compile(code, document, "exec"), {})
