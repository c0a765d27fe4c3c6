"""Damaged checkpoints: one clear line or the right parameters, nothing else.

Hypothesis draws a checkpoint, a kind of damage and its place. Whatever it is,
`paligemma.load` either raises a ValueError of one line that names the path, or
returns all parameters; where a format has checksums, with their values.
"""

import contextlib
import dataclasses
import functools
import io
import json
import math
import os
import pathlib
import pickle
import re
import shutil
import signal
import zipfile
from collections.abc import Callable

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import paligemma
from configs.transfers import forkme
from paligemma import init, tree
from paligemma.checkpoints import npz, safetensors
from paligemma.checkpoints.orbax import folder as orbax
from paligemma.checkpoints.training import fingerprint
from paligemma.checkpoints.training.steps import StepCheckpoints
from paligemma.models import paligemma as paligemma_model
from trainers import workdir

h5py = pytest.importorskip("h5py")

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens/keras_hub"
RES = 4
IMG = dict(width=6, depth=2, mlp_dim=5, num_heads=3, patch_size=2)
LLM = dict(
  width=8,
  depth=3,
  mlp_dim=9,
  num_heads=4,
  num_kv_heads=2,
  head_dim=10,
  vocab_size=11,
)

SECONDS = 30  # for one case; the slowest takes one on an idle machine
MEBIBYTES = 200  # for one case
LONGEST = 2000  # message


class HangsError(BaseException):
  """Not an Exception: whatever a loader catches, it does not catch this."""


@pytest.fixture(scope="module", autouse=True)
def _shapes_are_found_once():
  """To trace a model takes longer than all the rest, and it is the same one."""
  shapes = init.shapes
  found = {}

  def remembered(model, res=None):
    key = repr(model), res
    if key not in found:
      found[key] = shapes(model, res)
    return found[key]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(init, "shapes", remembered)
    yield


def flat_params(model):
  rng = np.random.default_rng(0)
  return {
    name: rng.normal(size=leaf.shape).astype(np.float32)
    for name, leaf in init.shapes(model, RES).items()
  }


@functools.cache
def tiny():
  model = paligemma_model.make("paligemma2_tiny", img=IMG, llm=LLM)
  return model, flat_params(model)


# Writers of the checkpoints that are damaged: folder -> path.


def write_npz(folder):
  path = folder / "a.npz"
  npz.save(path, tiny()[1])
  return path


def write_compressed_npz(folder):
  path = folder / "a.npz"
  arrays = dict(tiny()[1])
  table = "llm/embedder/input_embedding"
  arrays[table] = np.asfortranarray(arrays[table])
  np.savez_compressed(path, **{f"params/{n}": x for n, x in arrays.items()})
  return path


def write_orbax(folder):
  model, params = tiny()
  paligemma.save(folder / "a", model, tree.unflatten(params), format="orbax")
  return folder / "a"


def write_huggingface(folder):
  model, params = tiny()
  params = tree.unflatten(params)
  paligemma.save(folder / "a", model, params, format="huggingface")
  return folder / "a"


def write_shards(folder):
  path = write_huggingface(folder)
  tensors = safetensors.open(path / "model.safetensors")
  files = {n: f"model-0000{i % 3}.safetensors" for i, n in enumerate(tensors)}
  for file in set(files.values()):
    shard = {n: x for n, x in tensors.items() if files[n] == file}
    safetensors.save(path / file, shard)
  (path / "model.safetensors").unlink()
  index = path / "model.safetensors.index.json"
  index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
  return path


def write_run(folder):
  """A run that trained attention, with a moving average of it."""
  path = folder / "a"
  path.mkdir()
  source = write_npz(path)
  config = forkme.get_config("variant=paligemma2_tiny,tune=attention")
  config.res = RES
  config.model.update(img=IMG, llm=LLM)
  trained = {n: x for n, x in tiny()[1].items() if "/attn/" in n}
  with StepCheckpoints(path / "checkpoints", asynchronous=False) as steps:
    steps.save(
      7,
      {n: jax.numpy.asarray(x) for n, x in trained.items()},
      {"momentum": jax.numpy.ones(3)},
      ema={n: jax.numpy.asarray(-x) for n, x in trained.items()},
      metadata={
        "config": workdir.as_json(config),
        "init": {"path": "a.npz", "fingerprint": fingerprint.of(source)},
      },
    )
  return path


def write_gemma(folder):
  path = folder / "a"
  _, params = tiny()
  arrays = {}
  for name, array in params.items():
    if name.startswith("llm/layers/"):
      rest = name.removeprefix("llm/layers/")
      for i in range(len(array)):
        arrays[f"transformer/layer_{i}/{rest}"] = array[i]
    elif name.startswith("llm/"):
      arrays[name.replace("llm/", "transformer/")] = array
  save_gemma(path, arrays)
  return path


def save_gemma(path, arrays):
  found = {}
  for name, array in arrays.items():
    key, _, last = name.rpartition("/")
    found.setdefault(key, {})[last] = array
  handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False)
  with ocp.Checkpointer(handler) as checkpointer:
    checkpointer.save(path, found)


def write_keras_hub(folder, name="paligemma2"):
  """What keras-hub itself wrote."""
  with zipfile.ZipFile(GOLDENS / f"{name}.zip") as archive:
    archive.extractall(folder / "a")
  (folder / "a" / "expected.npz").unlink()
  return folder / "a"


WRITERS = {
  "npz": write_npz,
  "compressed npz": write_compressed_npz,
  "Orbax": write_orbax,
  "Hugging Face": write_huggingface,
  "Hugging Face shards": write_shards,
  "training run": write_run,
  "Gemma Orbax": write_gemma,
  "keras-hub": write_keras_hub,
  "keras-hub shards": functools.partial(write_keras_hub, name="gemma"),
}
# Every byte of an array stands under a checksum.
WITH_CHECKSUMS = {"npz", "compressed npz", "Orbax"}


@dataclasses.dataclass(frozen=True)
class Whole:
  """A checkpoint before damage."""

  format: str
  folder: pathlib.Path  # holds nothing else
  name: str
  params: dict[str, jax.Array]

  def copy(self, folder):
    shutil.copytree(self.folder, folder, symlinks=True)
    return folder / self.name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """Gives the Whole of a format.

  A function: hypothesis prints what a test is given, arrays at length.
  """
  found = {}
  for format, write in WRITERS.items():
    folder = tmp_path_factory.mktemp("whole")
    path = write(folder)
    params = tree.flatten(paligemma.load(path)[1])
    found[format] = Whole(format, folder, path.name, params)
  return lambda format: found[format]


@pytest.fixture(scope="module")
def new_folder(tmp_path_factory):
  """Makes a folder that is removed when its case is over."""

  @contextlib.contextmanager
  def make():
    parent = tmp_path_factory.mktemp("damaged")
    try:
      yield parent / "x"
    finally:
      shutil.rmtree(parent)

  return make


# The property.


@contextlib.contextmanager
def within(seconds):
  def stop(*_):
    raise HangsError(f"takes more than {seconds} seconds")

  before = signal.signal(signal.SIGALRM, stop)
  signal.setitimer(signal.ITIMER_REAL, seconds)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def at_most(mebibytes):
  """Of resident memory beyond what there is."""
  pathlib.Path("/proc/self/clear_refs").write_text("5")  # peak = present
  before = peak_kibibytes()
  yield
  assert peak_kibibytes() - before < mebibytes * 2**10


def peak_kibibytes():
  status = pathlib.Path("/proc/self/status").read_text()
  return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


def load(path):
  """The flat parameters, or None if there was an error as it must be."""
  params = None
  try:
    with within(SECONDS), at_most(MEBIBYTES):
      params = tree.flatten(paligemma.load(path)[1])
  except ValueError as error:
    message = str(error)
    assert str(path) in message
    assert len(message.splitlines()) == 1 and message.isprintable(), message
    assert len(message) < LONGEST + len(str(path)), message
  return params


def check(path, whole, *, values):
  """Loads; `values` says whether those of a success must be the original."""
  params = load(path)
  if params is None:
    return
  # Arrays do not tell the number of heads, nor which rows of a Hugging Face
  # vocabulary are only padding: a config that says another one is believed.
  table = "llm/embedder/input_embedding"
  sizes = {n: x.size for n, x in whole.params.items() if n != table}
  assert {n: x.size for n, x in params.items() if n != table} == sizes
  assert params[table].size >= whole.params[table].size
  for name, array in params.items():
    assert jax.numpy.issubdtype(array.dtype, jax.numpy.floating), name
    if values:
      np.testing.assert_array_equal(array, whole.params[name], err_msg=name)


# Damage to the files of any format: draw, path -> None.


def files_of(path):
  if path.is_file():
    return [path]
  return sorted(p for p in path.rglob("*") if p.is_file())


def any_file(draw, path):
  return draw(st.sampled_from(files_of(path)), label="file")


def content_and_place(draw, path):
  file = any_file(draw, path)
  content = bytearray(file.read_bytes())
  hypothesis.assume(content)
  # Headers are short, and at either end.
  size = len(content)
  place = draw(
    st.one_of(
      st.integers(0, size - 1),
      st.integers(0, min(size, 300) - 1),
      st.integers(max(size - 300, 0), size - 1),
    ),
    label="place",
  )
  return file, content, place


def flip_a_bit(draw, path):
  file, content, place = content_and_place(draw, path)
  content[place] ^= 1 << draw(st.integers(0, 7))
  file.write_bytes(content)


def overwrite(draw, path):
  file, content, place = content_and_place(draw, path)
  span = draw(
    st.one_of(
      st.binary(min_size=1, max_size=8),
      st.sampled_from([b"\xff" * 8, b"\0" * 16, b"\xff\xff\xff\x7f", b"9" * 9]),
    )
  )
  content[place : place + len(span)] = span
  file.write_bytes(content)


def cut(draw, path):
  file, content, place = content_and_place(draw, path)
  file.write_bytes(content[:place])


def cut_out(draw, path):
  file, content, place = content_and_place(draw, path)
  del content[place : place + draw(st.integers(1, 100))]
  file.write_bytes(content)


def insert(draw, path):
  file, content, place = content_and_place(draw, path)
  content[place:place] = draw(st.binary(min_size=1, max_size=9))
  file.write_bytes(content)


def append(draw, path):
  file = any_file(draw, path)
  file.write_bytes(file.read_bytes() + draw(st.binary(min_size=1, max_size=9)))


BYTES = (flip_a_bit, overwrite, cut, cut_out, insert, append)


class RunsCode:
  """Unpickled, it breaks the test."""

  def __reduce__(self):
    return (pytest.fail, ("a pickle was opened",))


@functools.cache
def foreign():
  """Name -> contents of a file of another format."""
  torch_zip = io.BytesIO()
  with zipfile.ZipFile(torch_zip, "w") as archive:
    archive.writestr("archive/data.pkl", pickle.dumps(RunsCode()))
    archive.writestr("archive/data/0", bytes(8))
  plain = io.BytesIO()
  np.savez(plain, **{"params/img/head/bias": np.ones(3)})
  pickled = io.BytesIO()
  np.savez(pickled, **{"params/img/head/bias": np.array([RunsCode()])})
  single = io.BytesIO()
  np.save(single, np.array([RunsCode()]))
  header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
  return {
    "empty": b"",
    "text": b"version https://git-lfs.github.com/spec/v1\n",
    "html": b"<!DOCTYPE html>\n<html>\xe9</html>\n" * 9,
    "object": b"{}",
    "array": b"[]",
    "null": b"null",
    "number": b"1e999",
    "deep": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "long number": b"9" * 10_000,
    "pickle": pickle.dumps(RunsCode()),
    "torch": torch_zip.getvalue(),
    "npz": plain.getvalue(),
    "pickled npz": pickled.getvalue(),
    "pickled npy": single.getvalue(),
    "safetensors": len(header).to_bytes(8, "little") + header + bytes(4),
    "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "long header": b"\xff" * 7 + b"\x7f" + bytes(50),
  }


def replace(draw, path):
  kind = draw(st.sampled_from(sorted(foreign())), label="by")
  any_file(draw, path).write_bytes(foreign()[kind])


def delete(draw, path):
  any_file(draw, path).unlink()


def swap(draw, path):
  one, other = any_file(draw, path), any_file(draw, path)
  contents = one.read_bytes(), other.read_bytes()
  other.write_bytes(contents[0]), one.write_bytes(contents[1])


def folder_for_file(draw, path):
  file = any_file(draw, path)
  file.unlink()
  file.mkdir()


def link_for_file(draw, path):
  file = any_file(draw, path)
  file.unlink()
  file.symlink_to(draw(st.sampled_from([file, file.parent, "nowhere"])))


def folders_of(path):
  found = sorted(p for p in path.rglob("*") if p.is_dir())
  hypothesis.assume(found)
  return found


def delete_folder(draw, path):
  shutil.rmtree(draw(st.sampled_from(folders_of(path))))


def file_for_folder(draw, path):
  folder = draw(st.sampled_from(folders_of(path)))
  shutil.rmtree(folder)
  folder.write_bytes(draw(st.sampled_from(sorted(foreign().values()))))


def link_for_folder(draw, path):
  folder = draw(st.sampled_from(folders_of(path)))
  shutil.rmtree(folder)
  folder.symlink_to(draw(st.sampled_from([folder, folder.parent])))


def rename_file(draw, path):
  file = any_file(draw, path)
  name = draw(
    st.sampled_from(
      [file.name.upper(), f"{file.name}.tmp", f".{file.name}", f"{file.name}\n"]
    )
  )
  file.rename(file.with_name(name))


def add_file(draw, path):
  """One more of the same kind, or of a kind that another format has."""
  file = any_file(draw, path)
  names = [
    f"a{file.suffix}",
    f"a\n{file.suffix}",
    os.fsdecode(b"\xe9" + os.fsencode(file.suffix)),
    "model.safetensors",
    "model.safetensors.index.json",
    "model.weights.h5",
    "model.weights.json",
    "pytorch_model.bin",
    "checkpoint.bv-LAST",
    "_METADATA",
    "manifest.ocdbt",
    "config.json",
    "zarr.json",
    "0",
    "99",
  ]
  contents = [file.read_bytes(), *foreign().values()]
  new = file.with_name(draw(st.sampled_from(names)))
  new.write_bytes(draw(st.sampled_from(contents)))


FILES = (
  replace,
  delete,
  swap,
  folder_for_file,
  link_for_file,
  rename_file,
  add_file,
)
FOLDERS = (delete_folder, file_for_folder, link_for_folder)


# Damage to what JSON says; safetensors begin with JSON as well.


WRONG = [
  None,
  True,
  False,
  -1,
  0,
  1,
  2,
  3,
  1000,
  2**31,
  2**63,
  10**30,
  10**400,
  0.5,
  -1e-300,
  1e308,
  math.nan,
  math.inf,
  "",
  "x",
  "1",
  "a\nb",
  "a\0b",
  "\ud800",
  "..",
  "/",
  "F16",
  "I32",
  "float64",
  "int32",
  "head_dim",
  "9" * 5000,
  "x" * 5000,
  [],
  {},
  [None],
  [0, 0],
  [-1, 2],
  [2**40, 2**40],
  ["x"],
  {"x": {}},
  {"name": "x", "configuration": {}},
]


@dataclasses.dataclass(frozen=True)
class Raw:
  """JSON that json.dumps would not write."""

  text: str


def places(value, at=()):
  yield at
  if isinstance(value, dict | list):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in items:
      yield from places(part, (*at, key))


def spoil_json(draw, value):
  """Returns the text of it with one thing changed."""
  *above, last = draw(
    st.sampled_from([at for at in places(value) if at]), label="at"
  )
  parent = functools.reduce(lambda x, key: x[key], above, value)
  how = draw(st.sampled_from(["replace", "delete", "rename", "nest", "double"]))
  if how == "delete":
    del parent[last]
  elif how == "rename" and isinstance(parent, dict):
    name = draw(st.sampled_from(["", "x", "x" * 5000, "a\nb", f"{last}_"]))
    parent[name] = parent.pop(last)
  elif how == "nest":
    parent[last] = {str(last): parent[last]}
  elif how == "double" and isinstance(parent, dict):
    mark = "_double_"
    wrong = json.dumps({str(last): draw(st.sampled_from(WRONG))})[1:-1]
    parent[mark] = 0
    return json.dumps(value).replace(f'"{mark}": 0', wrong)
  else:
    parent[last] = draw(st.sampled_from(WRONG), label="wrong")
  return json.dumps(value)


def read_json(file):
  content = file.read_bytes()
  if file.suffix == ".safetensors":
    content = content[8 : 8 + int.from_bytes(content[:8], "little")]
  try:
    found = json.loads(content)
  except ValueError:
    return None
  return found if isinstance(found, dict) and found else None


def spoil_a_json_file(draw, path):
  files = [file for file in files_of(path) if read_json(file)]
  # Not nearly always one of the many arrays.
  kinds = sorted({file.name for file in files})
  kind = draw(st.sampled_from(kinds), label="kind")
  files = [file for file in files if file.name == kind]
  file = draw(st.sampled_from(files), label="file")
  text = spoil_json(draw, read_json(file)).encode()
  if file.suffix == ".safetensors":
    content = file.read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    text = len(text).to_bytes(8, "little") + text + data
  file.write_bytes(text)


# Damage to arrays: other names, shapes and dtypes in sound files.


def save_npz(path, arrays):
  np.savez(path, **arrays)


def load_npz(path):
  with np.load(path) as file:
    return dict(file)


def save_compressed_npz(path, arrays):
  np.savez_compressed(path, **arrays)


def load_huggingface(path):
  tensors = safetensors.open(path / "model.safetensors")
  return {name: np.array(x[...]) for name, x in tensors.items()}


def save_huggingface(path, arrays):
  # Names of dtypes that our writer does not know.
  header, data = {}, b""
  for name, array in arrays.items():
    names = {dtype: key for key, dtype in safetensors.DTYPES.items()}
    header[name] = {
      "dtype": names.get(array.dtype, "C64"),
      "shape": array.shape,
      "data_offsets": [len(data), len(data) + array.nbytes],
    }
    data += array.tobytes()
  text = json.dumps(header).encode()
  content = len(text).to_bytes(8, "little") + text + data
  (path / "model.safetensors").write_bytes(content)


def load_orbax(path):
  arrays = orbax.tensors(orbax.find(path))
  return {name: np.array(x[...]) for name, x in arrays.items()}


def save_orbax(path, arrays):
  shutil.rmtree(path / "params")
  orbax.save(path / "new", arrays)
  (path / "new" / "params").rename(path / "params")
  shutil.rmtree(path / "new")


def replace_gemma(path, arrays):
  # Orbax writes no empty arrays.
  hypothesis.assume(all(x.size for x in arrays.values()))
  shutil.rmtree(path)
  save_gemma(path, arrays)


def load_hdf5(path):
  found = {}

  def visit(name, part):
    if isinstance(part, h5py.Dataset):
      found[name] = part[...]

  with h5py.File(path / "model.weights.h5") as file:
    file.visititems(visit)
  return found


def save_hdf5(path, arrays):
  with h5py.File(path / "model.weights.h5", "w") as file:
    for name, array in arrays.items():
      if array.dtype.hasobject:
        array = np.array(["pickled"], object)
        file.create_dataset(name, data=array, dtype=h5py.string_dtype())
      else:
        file.create_dataset(name, data=array)


@dataclasses.dataclass(frozen=True)
class Arrays:
  """How the arrays of a format are read and written, as they are there."""

  read: Callable
  write: Callable
  may_be: str  # dtypes that the writer knows


ARRAYS = {
  "npz": Arrays(load_npz, save_npz, "ebcOUmV"),
  "compressed npz": Arrays(load_npz, save_compressed_npz, "ebcOUmV"),
  "Hugging Face": Arrays(load_huggingface, save_huggingface, "ebc"),
  "Orbax": Arrays(load_orbax, save_orbax, "eb"),
  "Gemma Orbax": Arrays(load_orbax, replace_gemma, "eb"),
  "keras-hub": Arrays(load_hdf5, save_hdf5, "ebcOV"),
}
DTYPES = {
  "e": np.dtype("float16"),
  "b": np.dtype("int8"),
  "c": np.dtype("complex64"),
  "U": np.dtype("U3"),
  "m": np.dtype("m8[s]"),
  "O": np.dtype("O"),
  "V": np.dtype("V3"),
}
# The length of no other axis, and of no other array, tells these.
FREE = {
  "img/pos_embedding": 1,
  "input_embedding": 0,
  "reversible_embedding": 0,
}


def other_dtype(draw, name, array, arrays, known):
  dtype = DTYPES[draw(st.sampled_from(known), label="dtype")]
  if dtype.hasobject:
    arrays[name] = np.array([RunsCode()] * 2, object)
  elif dtype.kind in "Um":
    arrays[name] = np.zeros(array.shape, dtype)
  else:
    arrays[name] = array.astype(np.float32).astype(dtype)


def other_shape(draw, name, array, arrays, known):
  how = draw(st.sampled_from(["transpose", "flat", "longer", "empty", "more"]))
  axis = draw(st.integers(0, max(array.ndim - 1, 0)))
  free = [axis for end, axis in FREE.items() if end in name]
  if how == "transpose":
    arrays[name] = array.T
    hypothesis.assume(array.ndim > 1)
    hypothesis.assume(array.T.shape != array.shape)
  elif how == "flat":
    hypothesis.assume(array.ndim > 1)
    arrays[name] = array.reshape(-1)
  elif how == "longer":
    hypothesis.assume(array.ndim and axis not in free)
    arrays[name] = np.repeat(array, 2, axis)
  elif how == "empty":
    arrays[name] = array[..., :0] if array.ndim else array.reshape(1)[:0]
  else:
    arrays[name] = array[None]


def rename_array(draw, name, array, arrays, known):
  ends = ["x", f"{name}x", f"{name}/x", name[:-1], name.upper(), f"x/{name}"]
  ends += [name.replace("0", "9999999999"), name.replace("0", "٣"), f"{name}\n"]
  new = draw(st.sampled_from(ends))
  hypothesis.assume(new not in arrays and not new.endswith("/"))
  arrays[new] = arrays.pop(name)


def drop_array(draw, name, array, arrays, known):
  del arrays[name]


def drop_layer(draw, name, array, arrays, known):
  """The first layer of those that stand there apart."""
  marks = ["layer_0/", "layers.0.", "block/", "block_0/"]
  mark = draw(st.sampled_from(marks))
  dropped = [n for n in arrays if mark in n]
  hypothesis.assume(dropped)
  for n in dropped:
    del arrays[n]


def add_array(draw, name, array, arrays, known):
  new = draw(st.sampled_from(["x", f"{name}_", "img/x", "llm/layers/0/x", "t"]))
  hypothesis.assume(new not in arrays)
  arrays[new] = array


OF_ARRAYS = (
  other_dtype,
  other_shape,
  rename_array,
  drop_array,
  drop_layer,
  add_array,
)


SETTINGS = hypothesis.settings(
  deadline=None,
  derandomize=True,
  database=None,
  suppress_health_check=list(hypothesis.HealthCheck),
)


def spoil_bytes(data, whole, new_folder):
  whole = whole(data.draw(st.sampled_from(sorted(WRITERS))))
  damage = data.draw(st.sampled_from(BYTES))
  with new_folder() as folder:
    path = whole.copy(folder)
    damage(data.draw, path)
    check(path, whole, values=whole.format in WITH_CHECKSUMS)


def spoil_files(data, whole, new_folder):
  whole = whole(data.draw(st.sampled_from(sorted(WRITERS))))
  with new_folder() as folder:
    path = whole.copy(folder)
    damages = FILES if path.is_file() else FILES + FOLDERS
    data.draw(st.sampled_from(damages))(data.draw, path)
    check(path, whole, values=False)


def spoil_what_json_says(data, whole, new_folder):
  with_json = sorted(f for f in WRITERS if "npz" not in f)
  whole = whole(data.draw(st.sampled_from(with_json)))
  with new_folder() as folder:
    path = whole.copy(folder)
    spoil_a_json_file(data.draw, path)
    check(path, whole, values=False)


def spoil_arrays(data, whole, new_folder):
  format = data.draw(st.sampled_from(sorted(ARRAYS)))
  whole = whole(format)
  damage = data.draw(st.sampled_from(OF_ARRAYS))
  with new_folder() as folder:
    path = whole.copy(folder)
    arrays = ARRAYS[format].read(path)
    name = data.draw(st.sampled_from(sorted(arrays)))
    damage(data.draw, name, arrays[name], arrays, ARRAYS[format].may_be)
    ARRAYS[format].write(path, arrays)
    check(path, whole, values=False)


@hypothesis.settings(SETTINGS, max_examples=70)
@hypothesis.given(data=st.data())
def test_bytes(data, whole, new_folder):
  spoil_bytes(data, whole, new_folder)


@hypothesis.settings(SETTINGS, max_examples=70)
@hypothesis.given(data=st.data())
def test_files(data, whole, new_folder):
  spoil_files(data, whole, new_folder)


@hypothesis.settings(SETTINGS, max_examples=70)
@hypothesis.given(data=st.data())
def test_what_json_says(data, whole, new_folder):
  spoil_what_json_says(data, whole, new_folder)


@hypothesis.settings(SETTINGS, max_examples=70)
@hypothesis.given(data=st.data())
def test_arrays(data, whole, new_folder):
  spoil_arrays(data, whole, new_folder)
