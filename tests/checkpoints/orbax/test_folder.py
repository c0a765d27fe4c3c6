"""What Orbax wrote is read, and what is written Orbax reads."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from paligemma import tree
from paligemma.checkpoints import leaves
from paligemma.checkpoints.leaves import Leaf, Piece
from paligemma.checkpoints.orbax import folder as orbax
from paligemma.checkpoints.orbax import zarr

ROOT = pathlib.Path(__file__).parents[2]
RNG = np.random.default_rng(0)
FLAT = {
  "img/head/bias": RNG.normal(size=3).astype(np.float32),
  "img/pos_embedding": RNG.normal(size=(1, 5, 7)).astype(ml_dtypes.bfloat16),
  "llm/final_norm/scale": np.zeros(2, np.float16),
  "llm/layers/attn/q_einsum/w": RNG.normal(size=(11, 2, 3)).astype(np.float32),
}
SETTINGS = {
  "img": {"posemb": "learn"},
  "llm": {
    "sliding_window": 4096,
    "final_logits_softcap": None,
    "attn_logits_softcap": 50.0,
    "query_scale": 0.1 + 0.2,
    "norm_eps": 1e-6,
  },
  "metadata": {"image_token_id": 257152},
}


def assert_same(found, expected):
  assert found.keys() == expected.keys()
  for name in expected:
    assert found[name].dtype == expected[name].dtype, name
    np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def read(checkpoint):
  return {name: leaf.read() for name, leaf in checkpoint.leaves.items()}


def pytree(**options):
  return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options))


CHECKPOINTERS = {
  "standard": ocp.StandardCheckpointer,
  "pytree": ocp.PyTreeCheckpointer,
  "folders": lambda: pytree(use_ocdbt=False),
  "zarr3": lambda: pytree(use_zarr3=True),
  "zarr3 folders": lambda: pytree(use_zarr3=True, use_ocdbt=False),
}


def save_with_orbax(path, params, kind="standard", **options):
  with CHECKPOINTERS[kind]() as checkpointer:
    checkpointer.save(path, params, **options)


@pytest.fixture
def path(tmp_path):
  orbax.save(tmp_path / "a", FLAT, **SETTINGS)
  return tmp_path / "a"


@pytest.mark.parametrize("kind", CHECKPOINTERS)
def test_what_orbax_wrote_is_read(tmp_path, kind):
  params = jax.tree.map(jnp.asarray, tree.unflatten(FLAT))
  save_with_orbax(tmp_path / "a", params, kind)
  arrays = orbax.tensors(tmp_path / "a")
  assert {n: x.shape for n, x in arrays.items()} == {
    n: x.shape for n, x in FLAT.items()
  }
  assert_same({n: x[...] for n, x in arrays.items()}, FLAT)
  w = FLAT["llm/layers/attn/q_einsum/w"]
  found = arrays["llm/layers/attn/q_einsum/w"]
  for start, stop in ((0, 11), (3, 5), (5, 7), (10, 11), (0, 2)):
    np.testing.assert_array_equal(found[start:stop], w[start:stop])
  assert_same(read(orbax.open(tmp_path / "a")), FLAT)


def test_none_and_empty_and_numbers_are_no_arrays(tmp_path):
  params = {
    "a": np.ones(2),
    "b": None,
    "c": {},
    "d": [np.zeros(3), 7],
    "e": "x",
  }
  save_with_orbax(tmp_path / "a", params, "pytree")
  arrays = orbax.tensors(tmp_path / "a")
  assert {n: x.shape for n, x in arrays.items()} == {
    "a": (2,),
    "d/0": (3,),
    "d/1": (),
  }
  assert arrays["d/1"][...] == 7


@pytest.mark.parametrize("kind", ["standard", "folders", "zarr3 folders"])
def test_old_checkpoints_without_metadata(tmp_path, kind):
  save_with_orbax(tmp_path / "a", tree.unflatten(FLAT), kind)
  (tmp_path / "a" / "_METADATA").unlink()
  assert_same(read(orbax.open(tmp_path / "a")), FLAT)


def test_zeros_that_older_versions_left_out(tmp_path):
  save_with_orbax(tmp_path / "a", {"llm": {"w": np.zeros(5)}}, "folders")
  (tmp_path / "a" / "llm.w" / "0").unlink()
  with pytest.raises(ValueError, match=r"a: llm/w: .* chunk .* is missing"):
    orbax.tensors(tmp_path / "a")["llm/w"][...]
  edit(tmp_path / "a" / "_METADATA", store_array_data_equal_to_fill_value=False)
  found = orbax.tensors(tmp_path / "a")["llm/w"][...]
  np.testing.assert_array_equal(found, np.zeros(5))


def edit(file, **changes):
  file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_rows_of_a_chunk_are_decoded_once(tmp_path, monkeypatch):
  w = RNG.normal(size=(11, 3))
  params = {"a": w, "b": -w}
  save_with_orbax(tmp_path / "a", params)
  arrays = orbax.tensors(tmp_path / "a")
  reads = []
  read = zarr.Array._read
  monkeypatch.setattr(
    zarr.Array, "_read", lambda x, i: (reads.append(i), read(x, i))[1]
  )
  for row in range(11):
    np.testing.assert_array_equal(arrays["a"][row : row + 1], w[row : row + 1])
  assert reads == [slice(0, 11)]
  assert not arrays["a"].recent, "let go with its last row"
  arrays["a"][2:5]
  np.testing.assert_array_equal(arrays["b"][3:5], -w[3:5])
  assert len(arrays["a"].recent) == 1, "one chunk for all arrays"
  np.testing.assert_array_equal(arrays["a"][4:6], w[4:6])


def test_a_part_reads_only_its_chunks(tmp_path):
  w = RNG.normal(size=(6, 5)).astype(np.float32)
  save_with_orbax(
    tmp_path / "a",
    {"w": w},
    "folders",
    save_args={"w": ocp.SaveArgs(chunk_byte_size=40)},
  )
  chunks = sorted(
    p for p in (tmp_path / "a" / "w").iterdir() if "." in p.name[1:]
  )
  assert len(chunks) > 1
  chunks[-1].unlink()
  found = orbax.tensors(tmp_path / "a")["w"]
  np.testing.assert_array_equal(found[0:2], w[0:2])
  with pytest.raises(ValueError, match="is missing"):
    found[...]


def test_saved_then_opened_is_itself(path):
  found = orbax.open(path)
  assert_same(read(found), FLAT)
  assert {key: getattr(found, key) for key in SETTINGS} == SETTINGS
  assert (found.path, found.format, found.ignored) == (str(path), "Orbax", ())
  assert_same(read(orbax.open(path / "params")), FLAT)


@pytest.mark.parametrize("kind", ["standard", "pytree"])
def test_orbax_restores_what_is_saved(path, kind):
  with CHECKPOINTERS[kind]() as checkpointer:
    found = checkpointer.restore(path / "params")
  assert_same(tree.flatten(found), FLAT)


def test_orbax_restores_it_sharded_and_cast(path):
  place = NamedSharding(jax.make_mesh((8,), ("x",)), P())
  target = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=place),
    tree.unflatten(FLAT),
  )
  with ocp.StandardCheckpointer() as checkpointer:
    found = tree.flatten(checkpointer.restore(path / "params", target))
  assert all(x.sharding == place for x in found.values())
  assert_same(found, {n: x.astype(ml_dtypes.bfloat16) for n, x in FLAT.items()})


def test_orbax_restores_both_items(path):
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
    found = checkpointer.restore(
      path,
      args=ocp.args.Composite(
        params=ocp.args.StandardRestore(), model=ocp.args.JsonRestore()
      ),
    )
  assert_same(tree.flatten(found["params"]), FLAT)
  assert found["model"] == SETTINGS


def test_cast_while_saving(tmp_path):
  pairs = ((name, jnp.asarray(x)) for name, x in FLAT.items())
  orbax.save(tmp_path / "b", pairs, dtype="bfloat16")
  expected = {n: x.astype(ml_dtypes.bfloat16) for n, x in FLAT.items()}
  assert_same(read(orbax.open(tmp_path / "b")), expected)


def test_sharded_arrays_are_written_by_shard(tmp_path):
  mesh = jax.make_mesh((2, 4), ("x", "y"))
  w = RNG.normal(size=(3, 6, 20)).astype(np.float32)
  placed = {
    "llm/a": jax.device_put(w, NamedSharding(mesh, P(None, "x", "y"))),
    "llm/b": jax.device_put(w, NamedSharding(mesh, P(None, "x"))),
    "llm/c": jax.device_put(w[0, 0, 0], NamedSharding(mesh, P())),
  }
  orbax.save(tmp_path / "b", placed)
  assert_same(
    read(orbax.open(tmp_path / "b")),
    {"llm/a": w, "llm/b": w, "llm/c": w[0, 0, 0]},
  )
  files = (tmp_path / "b" / "params" / "llm.a" / "c").rglob("*")
  assert sum(p.is_file() for p in files) == 8


@pytest.mark.parametrize("block", [1, 7 * 4, 5 * 7 * 4, 60 * 4, 10**6])
def test_in_blocks_of_any_size(tmp_path, monkeypatch, block):
  monkeypatch.setattr(zarr, "BLOCK_BYTES", block)
  monkeypatch.setattr(leaves, "BLOCK_BYTES", block)
  w = RNG.normal(size=(3, 2, 5, 7)).astype(np.float32)
  apart = tuple(
    Piece((i, j), w[i, j].T.copy(), np.transpose)
    for i in range(3)
    for j in range(2)
  )
  mesh = jax.make_mesh((2, 4), ("x", "y"))
  places = {"x": P(None, "x"), "y": P(None, None, None, None)}
  arrays = {
    "llm/array": w,
    "llm/whole": Leaf.of(w),
    "llm/layers": Leaf(
      w.shape, w.dtype, tuple(Piece((i,), w[i]) for i in range(3))
    ),
    "llm/apart": Leaf(w.shape, w.dtype, apart),
    "llm/scalar": np.float32(3),
    "llm/empty": np.zeros((0, 5), np.float32),
  }
  arrays |= {
    f"llm/{n}": jax.device_put(w, NamedSharding(mesh, place))
    for n, place in places.items()
  }
  orbax.save(tmp_path / "b", arrays)
  expected = {
    name: x.read() if isinstance(x, Leaf) else np.asarray(x)
    for name, x in arrays.items()
  }
  assert_same(read(orbax.open(tmp_path / "b")), expected)


def test_no_tensor_is_read_twice_while_saving(tmp_path, monkeypatch):
  monkeypatch.setattr(zarr, "BLOCK_BYTES", 5 * 4)
  counts = {}

  class Counted:
    def __init__(self, key, x):
      self.key, self.x = key, x
      self.shape, self.dtype = x.shape, x.dtype

    def __getitem__(self, index):
      counts[self.key] = counts.get(self.key, 0) + 1
      return self.x[index]

  w = RNG.normal(size=(3, 5, 7)).astype(np.float32)
  pieces = tuple(
    Piece((i,), Counted(i, w[i].T), np.transpose) for i in range(3)
  )
  orbax.save(tmp_path / "b", {"llm/w": Leaf(w.shape, w.dtype, pieces)})
  assert counts == {0: 1, 1: 1, 2: 1}
  assert_same(read(orbax.open(tmp_path / "b")), {"llm/w": w})


def test_rows_are_read_once_while_saving(tmp_path, monkeypatch):
  monkeypatch.setattr(zarr, "BLOCK_BYTES", 2 * 7 * 4)
  monkeypatch.setattr(leaves, "BLOCK_BYTES", 2 * 7 * 4)
  w = RNG.normal(size=(3, 5, 7)).astype(np.float32)
  reads = []

  class Recorded:
    shape, dtype = w.shape, w.dtype

    def __getitem__(self, index):
      reads.append((index.start, index.stop))
      return w[index]

  orbax.save(tmp_path / "b", {"llm/w": Leaf.of(Recorded())})
  assert reads == [(0, 1), (1, 2), (2, 3)]
  assert_same(read(orbax.open(tmp_path / "b")), {"llm/w": w})


def test_no_chunk_crosses_a_shard(monkeypatch):
  monkeypatch.setattr(zarr, "BLOCK_BYTES", 5 * 7 * 4)
  whole, shard = (3, 24, 7), (3, 12, 7)
  assert zarr._chunk_shape(whole, whole, 4) == [1, 5, 7]
  assert zarr._chunk_shape(whole, shard, 4) == [1, 4, 7]


def test_what_devices_hold_in_common_is_fetched_once(tmp_path, monkeypatch):
  fetched = []
  fetch = zarr._fetch
  monkeypatch.setattr(
    zarr, "_fetch", lambda x: (fetched.append(x.shape), fetch(x))[1]
  )
  mesh = jax.make_mesh((2, 4), ("x", "y"))
  w = np.ones((6, 5), np.float32)
  placed = jax.device_put(w, NamedSharding(mesh, P("x")))
  orbax.save(tmp_path / "b", {"llm/w": placed})
  assert fetched == [(3, 5), (3, 5)]


def test_metadata_of_older_versions(tmp_path):
  for kind in ("standard", "folders"):
    save_with_orbax(tmp_path / kind, tree.unflatten(FLAT), kind)
    file = tmp_path / kind / "_METADATA"
    metadata = json.loads(file.read_text())
    only = {"tree_metadata": metadata["tree_metadata"]}
    file.write_text(json.dumps(only))
    assert_same(read(orbax.open(tmp_path / kind)), FLAT)


def test_what_a_user_saved(tmp_path):
  params = tree.unflatten(FLAT)
  save_with_orbax(tmp_path / "a", {"params": params, "step": 3})
  found = orbax.open(tmp_path / "a")
  assert_same(read(found), FLAT)
  assert found.ignored == ("step",)
  assert (found.img, found.llm, found.metadata) == ({}, {}, {})

  with ocp.CheckpointManager(tmp_path / "steps") as manager:
    for step in (9, 10):
      scaled = jax.tree.map(lambda x, step=step: x * step, params)
      manager.save(step, args=ocp.args.StandardSave(scaled))
  found = read(orbax.open(tmp_path / "steps"))
  assert_same(found, {n: x * 10 for n, x in FLAT.items()})
  assert_same(
    read(orbax.open(tmp_path / "steps" / "9" / "default")),
    found | {n: x * 9 for n, x in FLAT.items()},
  )


def test_other_trees_are_refused(tmp_path):
  save_with_orbax(tmp_path / "a", {"vit": {"w": np.ones(2)}})
  message = (
    r'a: expected parameters under "img/", "llm/" or "txt/", found vit/w'
  )
  with pytest.raises(ValueError, match=message):
    orbax.open(tmp_path / "a")
  save_with_orbax(tmp_path / "b", {"llm": {"w": np.ones(2, np.int8)}})
  with pytest.raises(ValueError, match="llm/w: dtype int8, expected float32"):
    orbax.open(tmp_path / "b")
  many = {f"w{i:02}": np.ones(1) for i in range(13)}
  save_with_orbax(tmp_path / "c", many)
  with pytest.raises(ValueError, match=r"w00, .*, w09 ... \(13 in all\)$"):
    orbax.open(tmp_path / "c")


def test_nothing_there(tmp_path):
  message = "holds no Orbax checkpoint, expected a folder with _METADATA"
  for path in (tmp_path, tmp_path / "absent", tmp_path / "file"):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=message):
      orbax.open(path)


def test_save_that_fails_leaves_nothing(tmp_path):
  def pairs():
    yield "img/head/bias", np.zeros(3)
    raise RuntimeError("killed")

  with pytest.raises(RuntimeError, match="killed"):
    orbax.save(tmp_path / "b", pairs())
  assert not list(tmp_path.iterdir())


def test_killed_while_saving_leaves_nothing_at_its_path(tmp_path):
  script = textwrap.dedent(
    f"""
    import os, signal, numpy as np
    from paligemma.checkpoints.orbax import folder as orbax
    def pairs():
      yield "llm/a", np.ones(3)
      os.kill(os.getpid(), signal.SIGKILL)
    orbax.save({str(tmp_path / "b")!r}, pairs())
    """
  )
  done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False)
  assert done.returncode == -9
  assert not (tmp_path / "b").exists()
  (left,) = tmp_path.iterdir()
  assert left.name.startswith(".b.") and left.name.endswith(".tmp")


def test_save_refuses(path, tmp_path):
  with pytest.raises(ValueError, match="a: exists; remove it, or give another"):
    orbax.save(path, FLAT)
  assert_same(read(orbax.open(path)), FLAT)
  with pytest.raises(ValueError, match="w: dtype object, expected bfloat16"):
    orbax.save(tmp_path / "b", {"w": np.array([None])})
  with pytest.raises(ValueError, match='b: "w" stands there twice'):
    orbax.save(tmp_path / "b", 2 * [("w", np.ones(3))])
  with pytest.raises(ValueError, match='"w" is a leaf and the prefix'):
    orbax.save(tmp_path / "b", {"w/a": np.ones(3), "w": np.ones(3)})
  assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_corrupt_settings(path):
  (path / "model" / "metadata").write_text(
    '{"img": {}, "llm": [], "metadata": {}}'
  )
  with pytest.raises(ValueError, match=r"metadata: .*expected objects"):
    orbax.open(path)
  (path / "model" / "metadata").write_text("{")
  with pytest.raises(ValueError, match="model/metadata: cannot be read"):
    orbax.open(path)


def test_a_flipped_bit_is_found(path):
  file = path / "params" / "llm.layers.attn.q_einsum.w" / "c" / "0" / "0" / "0"
  content = bytearray(file.read_bytes())
  content[17] ^= 1
  file.write_bytes(content)
  leaf = orbax.open(path).leaves["llm/layers/attn/q_einsum/w"]
  message = "a/params: llm/layers/attn/q_einsum/w: cannot be read.*Digest"
  with pytest.raises(ValueError, match=message) as e:
    leaf.read()
  assert "\n" not in str(e.value)


def test_chunks_far_larger_than_their_array(path):
  """tensorstore would ask for that much memory, and abort without it."""
  file = next(path.glob("params/*/zarr.json"))
  metadata = json.loads(file.read_text())
  chunk = metadata["chunk_grid"]["configuration"]["chunk_shape"]
  chunk[-1] *= 10**9
  file.write_text(json.dumps(metadata))
  with pytest.raises(ValueError, match=r"corrupt .* \(chunks of shape \("):
    orbax.open(path)


@pytest.mark.parametrize("kind", ["ours", "standard", "folders"])
def test_whatever_file_is_broken(tmp_path, kind):
  good = tmp_path / "good"
  if kind == "ours":
    orbax.save(good, FLAT, **SETTINGS)
  else:
    save_with_orbax(good, tree.unflatten(FLAT), kind)
  names = sorted(
    str(p.relative_to(good)) for p in good.rglob("*") if p.is_file()
  )
  rng = np.random.default_rng(0)
  failures = 0
  for name in names:
    content = (good / name).read_bytes()
    flipped = bytearray(content)
    if content:
      flipped[rng.integers(len(content))] ^= 0xFF
    for bad in (None, content[: len(content) // 2], bytes(flipped), b"x"):
      broken = tmp_path / "broken"
      shutil.copytree(good, broken)
      (broken / name).unlink()
      if bad is not None:
        (broken / name).write_bytes(bad)
      try:
        read(orbax.open(broken))
      except ValueError as e:
        failures += 1
        assert str(broken) in str(e) and "\n" not in str(e)
      shutil.rmtree(broken)
  # How many files Orbax writes, and which of them are read, varies.
  assert failures > len(names) // 2


def test_two_processes_write_one_checkpoint(tmp_path):
  script = textwrap.dedent(
    """
    import sys
    import jax, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec as P
    from paligemma.checkpoints.orbax import folder as orbax

    path, port, index = sys.argv[1:]
    jax.distributed.initialize(f"localhost:{port}", 2, int(index))
    mesh = jax.make_mesh((2,), ("x",))
    w = np.arange(42, dtype=np.float32).reshape(6, 7)
    def place(spec):
      return jax.make_array_from_callback(
        w.shape, NamedSharding(mesh, spec), lambda i: w[i]
      )
    orbax.save(path, {"llm/a": place(P("x")), "llm/b": place(P()), "llm/c": w})
    """
  )
  with socket.socket() as s:
    s.bind(("localhost", 0))
    port = s.getsockname()[1]
  environment = {**os.environ, "XLA_FLAGS": ""}
  children = [
    subprocess.Popen(
      [
        sys.executable,
        "-c",
        script,
        str(tmp_path / "b"),
        str(port),
        str(index),
      ],
      cwd=ROOT,
      env=environment,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  for child in children:
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
  w = np.arange(42, dtype=np.float32).reshape(6, 7)
  expected = {f"llm/{name}": w for name in "abc"}
  assert_same(read(orbax.open(tmp_path / "b")), expected)
  assert [p.name for p in tmp_path.iterdir()] == ["b"]
