"""The rules of the house: who imports whom, and what the library never does.

All of it is read off the syntax trees; nothing is imported.
"""

import ast
import functools
import pathlib
import re
import textwrap

import pytest

ROOT = pathlib.Path(__file__).parents[1]
OURS = ("paligemma", "trainers", "configs", "scripts")
ANYTHING = ("*",)

# Room -> what it may import of ours. A room is a module or a whole package, and
# may import from itself; the nearest enclosing room of a module counts.
MAY_IMPORT = {
  "paligemma": ANYTHING,  # __init__.py alone: every other module has a room
  "paligemma.__main__": ANYTHING,
  "paligemma.api": ANYTHING,
  "paligemma.io": ANYTHING,
  "paligemma.messages": (),
  "paligemma.disk": (),
  "paligemma.variants": (),
  "paligemma.registry": ("messages",),
  "paligemma.tree": ("registry",),
  "paligemma.parameters": ("variants",),
  "paligemma.quantization": ("parameters", "tree", "registry"),
  "paligemma.init": ("tree", "quantization"),
  "paligemma.data": ("variants", "tree", "registry", "messages", "disk"),
  "paligemma.metrics": ("variants", "tree", "registry", "data", "messages"),
  "paligemma.lora.config": ("parameters", "tree", "registry"),
  "paligemma.lora": ("parameters", "tree", "quantization", "init"),
  "paligemma.models": (
    "variants",
    "parameters",
    "tree",
    "registry",
    "messages",
    "lora.config",
    "quantization",
  ),
  "paligemma.decoding": ("tree", "registry", "variants", "models.cpu"),
  "paligemma.training": (
    "variants",
    "parameters",
    "tree",
    "registry",
    "quantization",
    "models.microbatch",
  ),
  "paligemma.checkpoints": (
    "variants",
    "parameters",
    "tree",
    "registry",
    "disk",
    "messages",
    "lora",
    "quantization",
  ),
  "paligemma.planning": (
    "messages",
    "parameters",
    "tree",
    "registry",
    "variants",
  ),
  "paligemma.evals": (
    "data",
    "training",
    "decoding",
    "metrics",
    "tree",
    "registry",
    "disk",
    "messages",
  ),
  "paligemma.serving": (
    "data",
    "decoding",
    "lora",
    "models",
    "messages",
    "registry",
    "tree",
  ),
  "paligemma.integrations": ANYTHING,
  # The table of keys: what a config may set and what a trainer reads is one.
  "configs.common": (
    "data",
    "parameters",
    "variants",
    "registry",
    "messages",
    "lora.config",
  ),
  "trainers": ("*", "trainers", "configs.common"),
  "scripts": ("*", "trainers", "configs.common", "configs.arguments"),
  "configs": (
    "data",
    "parameters",
    "variants",
    "registry",
    "lora.config",
    "configs",
  ),
}

# Data workers start fast, and metrics run anywhere: NumPy alone.
WITHOUT_JAX = (
  "paligemma.registry",
  "paligemma.data",
  "paligemma.metrics",
  "paligemma.tree",
  "paligemma.variants",
  "paligemma.parameters",
)
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}
NOT_AT_RUN_TIME = {
  "torch",
  "torchvision",
  "tensorflow",
  "transformers",
  "keras",
}
# What the benchmark measures beside this project, when it is asked to.
PEER = "scripts.benchmarks.peer"
# Where a user keeps published checkpoints is said once for all programs.
READS_ENVIRONMENT = {("paligemma.checkpoints.presets", "os.environ")}
NO_FILE_NAMES = {"util", "utils", "helper", "helpers", "misc", "common"}


def module_name(path):
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
  module_name(path): path
  for package in OURS
  for path in sorted((ROOT / package).rglob("*.py"))
}


@functools.cache
def syntax(path):
  return ast.parse(path.read_text(), str(path))


def resolve(name, modules):
  """'paligemma.tree.flatten' -> 'paligemma.tree'; foreign names as they are."""
  parts = name.split(".")
  while parts and ".".join(parts) not in modules:
    parts.pop()
  return ".".join(parts) or name


def imports(source, module, modules):
  """Yields (line, imported module, True if it runs when `module` is loaded)."""
  is_package = any(name.startswith(f"{module}.") for name in modules)
  package = module if is_package else module.rpartition(".")[0]

  def visit(node, eager):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
      eager = False
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield node.lineno, resolve(alias.name, modules), eager
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ""
      if node.level:
        parents = package.split(".")
        parents = parents[: len(parents) - node.level + 1]
        base = ".".join([*parents, *filter(None, [base])])
      for alias in node.names:
        yield node.lineno, resolve(f"{base}.{alias.name}", modules), eager
    for child in ast.iter_child_nodes(node):
      yield from visit(child, eager)

  yield from visit(source, eager=True)


def all_imports():
  for module, path in MODULES.items():
    for line, imported, eager in imports(syntax(path), module, MODULES):
      where = f"{path.relative_to(ROOT)}:{line}"
      yield module, where, imported, eager


def is_in(module, room):
  return module == room or module.startswith(f"{room}.")


def room_of(module):
  if module == "paligemma":
    return module
  rooms = [r for r in MAY_IMPORT if r != "paligemma" and is_in(module, r)]
  return max(rooms, key=len, default=None)


def may_import(module, imported):
  """Whether a module of ours may import another one."""
  room = room_of(module)
  if is_in(imported, room) and imported != "paligemma":
    return True
  for name in MAY_IMPORT[room]:
    if name == "*" and is_in(imported, "paligemma"):
      return True
    if name.partition(".")[0] in OURS and is_in(imported, name):
      return True
    if is_in(imported, f"paligemma.{name}"):
      return True
  return False


def test_every_module_has_a_room():
  homeless = [
    str(path.relative_to(ROOT))
    for module, path in MODULES.items()
    if room_of(module) is None
  ]
  assert not homeless, f"give them a line in MAY_IMPORT: {homeless}"


def test_imports_of_ours_follow_the_table():
  broken = [
    f"{where}: {module} imports {imported}, {room_of(module)} may import "
    f"{MAY_IMPORT[room_of(module)]}"
    for module, where, imported, _ in all_imports()
    if imported.partition(".")[0] in OURS and not may_import(module, imported)
  ]
  assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
  ("module", "imported", "allowed"),
  [
    ("paligemma.training.losses", "paligemma.tree", True),
    ("paligemma.training.losses", "paligemma.models.vit", False),
    ("paligemma.tree", "paligemma.variants", False),
    ("paligemma.data.batches", "paligemma.data.image", True),
    ("paligemma.data.batches", "paligemma.metrics", False),
    ("paligemma.models.gemma", "paligemma.models.attention.reference", True),
    ("paligemma.models.gemma", "paligemma.lora.apply", False),
    ("paligemma.models.gemma", "paligemma.training.losses", False),
    ("paligemma.decoding.decode", "paligemma.models.gemma", False),
    ("paligemma.tree", "paligemma", False),
    ("paligemma", "paligemma.decoding.decode", True),
    ("paligemma.api", "trainers.train", False),
    ("trainers.train", "paligemma.decoding.decode", True),
    ("trainers.train", "configs.common", True),
    ("trainers.train", "configs.transfers.forkme", False),
    ("scripts.demo", "trainers.train", True),
    ("configs.common", "paligemma.data.preprocess", True),
    ("configs.common", "configs.tuning", False),
    ("configs.tuning", "paligemma.lora.apply", False),
    ("configs.common", "paligemma.models.gemma", False),
    ("configs.common", "paligemma", False),
  ],
)
def test_the_table_is_read_right(module, imported, allowed):
  assert may_import(module, imported) == allowed


def test_no_import_cycle():
  graph = {module: set() for module in MODULES}
  for module, _, imported, eager in all_imports():
    # Only what is asked for counts: `from paligemma import tree` also runs
    # paligemma/__init__.py, but needs nothing of it.
    if eager and imported in graph and imported != module:
      graph[module].add(imported)
  assert find_cycle(graph) is None, " -> ".join(find_cycle(graph))


def test_no_circle_between_folders_of_configs_and_trainers():
  graph = {}
  for module, _, imported, _ in all_imports():
    pair = (module, imported)
    folders = [MODULES[x].parent for x in pair if x in MODULES]
    if len(set(folders)) == 2 and not any(is_in(x, "scripts") for x in pair):
      first, second = map(str, folders)
      graph.setdefault(first, set()).add(second)
      graph.setdefault(second, set())
  for folder in ("configs", "configs/transfers", "trainers"):
    below = {str(ROOT / folder)}
    while more := set().union(*(graph[x] for x in below)) - below:
      below |= more
    assert not any(str(ROOT / folder) in graph[x] for x in below), folder


def find_cycle(graph):
  """Returns a list of nodes that begins and ends with the same one, or None."""
  done = set()

  def visit(node, trail):
    if node in trail:
      return [*trail[trail.index(node) :], node]
    if node in done:
      return None
    for child in sorted(graph[node]):
      if cycle := visit(child, [*trail, node]):
        return cycle
    done.add(node)
    return None

  cycles = (visit(node, []) for node in sorted(graph))
  return next((cycle for cycle in cycles if cycle), None)


def test_find_cycle():
  acyclic = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
  assert find_cycle(acyclic) is None
  assert find_cycle(acyclic | {"c": {"b"}}) == ["b", "c", "b"]


def test_no_foreign_framework_at_run_time():
  broken = [
    f"{where}: {module} imports {imported}"
    for module, where, imported, _ in all_imports()
    if imported.partition(".")[0] in NOT_AT_RUN_TIME and module != PEER
  ]
  assert not broken, "\n".join(broken)


def test_numpy_rooms_import_no_jax():
  broken = [
    f"{where}: {module} imports {imported}"
    for module, where, imported, _ in all_imports()
    if any(is_in(module, room) for room in WITHOUT_JAX)
    and imported.partition(".")[0] in JAX
  ]
  assert not broken, "\n".join(broken)


def test_imports_are_found_wherever_they_stand():
  source = ast.parse(
    textwrap.dedent(
      """
      import a.b.c
      from a import b as renamed, x
      from . import sibling
      from .sibling import name
      from .. import top
      class C:
        from a import b
      def f():
        import late
      """
    )
  )
  modules = {"a", "a.b", "p", "p.q", "p.q.m", "p.q.sibling", "p.top"}
  assert list(imports(source, "p.q.m", modules)) == [
    (2, "a.b", True),
    (3, "a.b", True),
    (3, "a", True),
    (4, "p.q.sibling", True),
    (5, "p.q.sibling", True),
    (6, "p.top", True),
    (8, "a.b", True),
    (10, "late", False),
  ]


def side_effects(source):
  """Yields (line, what) of what a library must leave to its caller."""
  for node in ast.walk(source):
    if isinstance(node, ast.Call):
      name = ast.unparse(node.func)
      if name in ("print", "jax.config.update", "os.getenv", "os.putenv"):
        yield node.lineno, name
      if name.startswith("logging.") and name.endswith("basicConfig"):
        yield node.lineno, name
    elif isinstance(node, ast.Attribute) and ast.unparse(node) == "os.environ":
      yield node.lineno, "os.environ"
    elif isinstance(node, ast.ImportFrom) and node.module == "os":
      for alias in node.names:
        if alias.name in ("environ", "getenv"):
          yield node.lineno, f"os.{alias.name}"


def test_the_library_leaves_its_surroundings_alone():
  broken = [
    f"{path.relative_to(ROOT)}:{line}: {what}"
    for module, path in MODULES.items()
    if is_in(module, "paligemma")
    for line, what in side_effects(syntax(path))
    if (module, what) not in READS_ENVIRONMENT
  ]
  assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
  "line",
  [
    "print(1)",
    "jax.config.update('a', 1)",
    "os.environ['A'] = 1",
    "x = os.environ.get('A')",
    "os.getenv('A')",
    "from os import environ",
  ],
)
def test_side_effects_are_found(line):
  assert [number for number, _ in side_effects(ast.parse(line))] == [1]


def test_file_names_are_nouns():
  vague = [
    str(path.relative_to(ROOT))
    for path in (ROOT / "paligemma").rglob("*")
    if NO_FILE_NAMES & set(path.stem.lower().split("_"))
  ]
  assert not vague, f"name them after what they hold: {vague}"


def test_every_module_says_its_one_idea():
  silent = [
    str(path.relative_to(ROOT))
    for path in MODULES.values()
    if path.read_text().strip() and ast.get_docstring(syntax(path)) is None
  ]
  assert not silent, f"no docstring: {silent}"


# A string that names a parameter, or a part of its name.
PARAMETER = re.compile(
  r"_einsum|encoderblock|MultiHeadDotProductAttention|input_embedding|MlpBlock"
  r"|pos_embedding|Dense_[01]|final_norm|llm/layers|img/Transformer"
  r"|encoder_norm|mlp/linear|pre_attention_norm|self_attn|q_proj"
)
# The table, and those of the converters.
NAME_PARAMETERS = {
  "paligemma.parameters",
  "paligemma.checkpoints.huggingface.layout",
  "paligemma.checkpoints.huggingface.read",
  "paligemma.checkpoints.keras_hub",
  "paligemma.checkpoints.orbax.gemma",
}
# They define the parameters; and the program that is measured beside ours.
DEFINE_PARAMETERS = {
  *(f"paligemma.models.{x}" for x in ("vit", "naflex", "text_tower", "gemma")),
  "paligemma.models.text_decoder",
  PEER,
}


def docstrings(source):
  for node in ast.walk(source):
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
      first = node.body[0] if node.body else None
      if isinstance(first, ast.Expr):
        yield first.value


def parameters_named(source):
  """Yields (line, string) of the strings that name a parameter."""
  ignored = set(map(id, docstrings(source)))
  for node in ast.walk(source):
    is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    if is_text and id(node) not in ignored and PARAMETER.search(node.value):
      yield node.lineno, node.value


def test_parameters_are_named_in_their_table():
  broken = [
    f"{path.relative_to(ROOT)}:{line}: {text!r}, expected what parameters.py "
    "says of it"
    for module, path in MODULES.items()
    if module not in NAME_PARAMETERS | DEFINE_PARAMETERS
    for line, text in parameters_named(syntax(path))
  ]
  assert not broken, "\n".join(broken)
  assert len(DEFINE_PARAMETERS) <= 6


def test_names_of_parameters_are_found():
  source = ast.parse(
    '"""llm/layers in a docstring."""\n'
    'x = "llm/layers/mlp"\n'
    'y = f"{x}/q_einsum/w"\n'
    'z = "mlp"\n'
  )
  assert [line for line, _ in parameters_named(source)] == [2, 3]


# Files of ours that strings and comments name. Those of big_vision, below
# "proj", are not ours.
OF_OURS = re.compile(
  r"(?<![\w/.])(?:paligemma|trainers|configs|scripts|docs|tests)"
  r"/(?!proj/)[a-z0-9_/]+\.(?:py|md|sh|json)\b"
)


def test_files_that_are_named_exist():
  missing = [
    f"{path.relative_to(ROOT)}: {name}"
    for path in MODULES.values()
    for name in OF_OURS.findall(path.read_text())
    if not (ROOT / name).exists()
  ]
  assert not missing, "\n".join(missing)


def unannotated(source):
  """Yields (line, name) of public functions that lack a type."""

  def visit(body, of_class):
    for node in body:
      if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
        yield from visit(node.body, True)
      if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        continue
      if node.name.startswith("_") and node.name != "__call__":
        continue
      args = node.args
      given = [*args.posonlyargs, *args.args, *args.kwonlyargs]
      given += filter(None, (args.vararg, args.kwarg))
      if of_class and given and given[0].arg in ("self", "cls"):
        given = given[1:]
      if node.returns is None or not all(x.annotation for x in given):
        yield node.lineno, node.name

  yield from visit(source.body, False)


def test_public_functions_are_typed():
  broken = [
    f"{path.relative_to(ROOT)}:{line}: {name}"
    for path in MODULES.values()
    for line, name in unannotated(syntax(path))
  ]
  assert not broken, "\n".join(broken)


def test_unannotated():
  source = ast.parse(
    textwrap.dedent(
      """
      def whole(x: int, *more: int, key: str = "") -> None: ...
      def no_result(x: int): ...
      def _private(x): ...
      class C:
        def method(self, x) -> None: ...
        def __call__(self) -> int: ...
      """
    )
  )
  assert list(unannotated(source)) == [(3, "no_result"), (6, "method")]


# Words of this project alone, in whose place those of the field are used.
OLD_WORDS = {
  "adapter_files",
  "calls",
  "few_rows",
  "initial",
  "interchange",
  "layer_scan",
  "new_folder",
  "parts",
  "quantized",
  "quantizing",
  "reordered",
  "rows",
  "small_gpu",
  "weights",
}


def test_modules_have_names_of_the_field():
  found = {module for module in MODULES if OLD_WORDS & {*module.split(".")}}
  assert not found


def test_the_root_is_small():
  root = [p for p in (ROOT / "paligemma").glob("*.py") if p.stem[:2] != "__"]
  assert len(root) <= 10, sorted(p.name for p in root)
