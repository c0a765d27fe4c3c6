"""Saved and resumed is as if never stopped, however the saving ended."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from paligemma.checkpoints.training import steps

ROOT = pathlib.Path(__file__).parents[2]
OPTIMIZER = optax.chain(
  optax.trace(0.9), optax.scale_by_schedule(lambda count: 0.1 / (1 + count))
)


def sharding(*axes):
  return NamedSharding(jax.make_mesh((8,), ("data",)), P(*axes))


def state(seed=0):
  """(trainable, opt_state after one update, ema), the kernel sharded."""
  rng = np.random.default_rng(seed)
  kernel = rng.normal(size=(16, 3)).astype(np.float32)
  trainable = {
    "llm/layers/attn/w": jax.device_put(kernel, sharding("data")),
    "img/head/bias": jax.device_put(
      jnp.asarray(rng.normal(size=5), jnp.bfloat16), sharding()
    ),
  }
  opt_state = OPTIMIZER.init(trainable)
  _, opt_state = OPTIMIZER.update(trainable, opt_state)
  ema = jax.tree.map(lambda x: x / 2, trainable)
  return trainable, opt_state, ema


def iterator():
  data = grain.MapDataset.range(101).shuffle(seed=3).repeat()
  return iter(data.to_iter_dataset().batch(7))


def assert_same(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for x, y in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)


def test_restored_is_what_was_saved(tmp_path):
  trainable, opt_state, ema = state()
  data = iterator()
  next(data)
  metadata = {"frozen": {"source": "a.npz", "fingerprint": "sha256:0"}}
  with steps.StepCheckpoints(tmp_path) as checkpoints:
    checkpoints.save(
      2,
      trainable,
      opt_state,
      ema=ema,
      data_iterator=data,
      metadata=metadata,
    )
    expected = [next(data) for _ in range(3)]  # while it is being written

  resumed = iterator()
  with steps.StepCheckpoints(tmp_path) as checkpoints:
    assert checkpoints.latest_step() == 2
    assert checkpoints.metadata(2) == metadata
    found = checkpoints.restore(
      2, trainable, opt_state, ema=ema, data_iterator=resumed
    )
  assert_same(found, (trainable, opt_state, ema))
  assert isinstance(found[1][0], optax.TraceState)
  for batch in expected:
    np.testing.assert_array_equal(next(resumed), batch)


def test_restores_into_another_sharding(tmp_path):
  trainable, opt_state, _ = state()
  with steps.StepCheckpoints(tmp_path) as checkpoints:
    checkpoints.save(2, trainable, opt_state)
    abstract = {
      name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=target)
      for (name, x), target in zip(
        trainable.items(),
        (sharding(), jax.sharding.SingleDeviceSharding(jax.devices()[3])),
        strict=True,
      )
    }
    found, _, ema = checkpoints.restore(2, abstract, opt_state)
  assert ema is None
  assert_same(found, trainable)
  for name, x in found.items():
    assert x.sharding == abstract[name].sharding
  assert not trainable["llm/layers/attn/w"].sharding.is_fully_replicated


def test_names_beyond_nine_keep_their_order(tmp_path):
  trainable = {"w": jnp.zeros(2)}
  opt_state = tuple(jnp.full((3,), float(i)) for i in range(11))
  with steps.StepCheckpoints(tmp_path) as checkpoints:
    checkpoints.save(1, trainable, opt_state)
    _, found, _ = checkpoints.restore(1, trainable, opt_state)
  assert_same(found, opt_state)


def test_buffers_may_be_donated_right_after_save(tmp_path):
  trainable, opt_state, _ = state()
  before = jax.tree.map(np.array, trainable)
  ruin = jax.jit(
    lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0
  )
  control, _, _ = state()
  ruin(control)
  assert all(x.is_deleted() for x in control.values())

  with steps.StepCheckpoints(tmp_path) as checkpoints:
    checkpoints.save(1, trainable, opt_state)
    ruined = ruin(trainable)
    assert all(np.all(np.asarray(x) == -1) for x in ruined.values())
    found, _, _ = checkpoints.restore(1, ruined, opt_state)
  assert_same(found, before)


def test_keeps_the_last_and_every_period(tmp_path):
  trainable, opt_state, _ = state()
  with steps.StepCheckpoints(
    tmp_path, max_to_keep=2, keep_period=4
  ) as checkpoints:
    for step in range(2, 13, 2):
      checkpoints.save(step, trainable, opt_state)
  found = sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit())
  assert found == [4, 8, 10, 12]


def test_a_saved_step_is_left_as_it_is(tmp_path):
  trainable, opt_state, _ = state()
  other, _, _ = state(seed=1)
  with steps.StepCheckpoints(tmp_path, asynchronous=False) as checkpoints:
    checkpoints.save(1, trainable, opt_state)
    checkpoints.save(1, other, opt_state)
    found, _, _ = checkpoints.restore(1, trainable, opt_state)
  assert_same(found, trainable)


def test_no_checkpoint_yet(tmp_path):
  with steps.StepCheckpoints(tmp_path / "new") as checkpoints:
    assert checkpoints.latest_step() is None
    with pytest.raises(ValueError, match=r"no checkpoint of step 3, .*\[\]"):
      checkpoints.metadata(3)


def test_differing_leaves_are_listed(tmp_path):
  trainable, opt_state, _ = state()
  with steps.StepCheckpoints(tmp_path) as checkpoints:
    checkpoints.save(1, trainable, opt_state)
    changed = {
      "llm/layers/attn/w": jnp.zeros((16, 2)),
      "img/head/biases": trainable["img/head/bias"],
    }
    with pytest.raises(ValueError) as e:
      checkpoints.restore(1, changed, opt_state)
    for part in (
      "/1: the checkpoint differs from this run in 3 of 5 leaves: ",
      "trainable/img/head/bias: unexpected, found (5,)",
      "trainable/img/head/biases: missing, expected (5,)",
      "trainable/llm/layers/attn/w: found shape (16, 3), expected (16, 2)",
    ):
      assert part in str(e.value)
    assert "\n" not in str(e.value)

    half = trainable | {"llm/layers/attn/w": jnp.zeros((16, 3), jnp.float16)}
    message = "attn/w: found dtype float32, expected float16"
    with pytest.raises(ValueError, match=message):
      checkpoints.restore(1, half, opt_state)
    message = "ema/img/head/bias: missing"
    with pytest.raises(ValueError, match=message):
      checkpoints.restore(1, trainable, opt_state, ema=trainable)


def start(script, *arguments):
  environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
  return subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
    env=environment,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_killed_while_saving(tmp_path):
  script = """
    import os, signal, sys
    import jax.numpy as jnp
    from paligemma.checkpoints.training import steps

    checkpoints = steps.StepCheckpoints(sys.argv[1])
    checkpoints.save(1, {"w": jnp.ones(3)}, ())
    checkpoints.wait()
    rename = os.rename

    def killed_before_the_last_rename(source, target, **arguments):
      if str(target).endswith("/2"):
        os.kill(os.getpid(), signal.SIGKILL)
      rename(source, target, **arguments)

    os.rename = killed_before_the_last_rename
    checkpoints.save(2, {"w": jnp.zeros(3)}, ())
    checkpoints.wait()
  """
  child = start(script, tmp_path)
  _, errors = child.communicate(timeout=60)
  assert child.returncode == -signal.SIGKILL, errors
  assert [p for p in tmp_path.iterdir() if p.name.startswith("2.orbax")]

  trainable = {"w": jnp.zeros(3)}
  with steps.StepCheckpoints(tmp_path) as checkpoints:
    assert checkpoints.latest_step() == 1
    found, _, _ = checkpoints.restore(1, trainable, ())
    assert_same(found, {"w": np.ones(3, np.float32)})
    checkpoints.save(2, trainable, ())
  assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


def test_two_processes(tmp_path):
  script = """
    import sys
    import grain, jax, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec as P
    from paligemma.checkpoints.training import steps

    directory, port, index = sys.argv[1], sys.argv[2], int(sys.argv[3])
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, index)
    mesh = jax.make_mesh((2,), ("data",))
    data = lambda: iter(grain.MapDataset.range(23)[index::2].to_iter_dataset())

    def array(rows):
      return {"w": jax.make_array_from_process_local_data(
        NamedSharding(mesh, P("data")), rows)}

    saved, iterator = array(np.full((3, 2), index, np.float32)), data()
    for _ in range(4 + index):
      next(iterator)
    with steps.StepCheckpoints(directory) as checkpoints:
      checkpoints.save(5, saved, (), data_iterator=iterator)
    resumed = data()
    with steps.StepCheckpoints(directory) as checkpoints:
      assert checkpoints.latest_step() == 5
      zeros = array(np.zeros((3, 2), np.float32))
      found, _, _ = checkpoints.restore(5, zeros, (), data_iterator=resumed)
    local = found["w"].addressable_shards[0].data
    np.testing.assert_array_equal(local, np.full((3, 2), index))
    assert next(resumed) == next(iterator) == index + 2 * (4 + index)
  """
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
  children = [start(script, tmp_path, port, index) for index in range(2)]
  for child in children:
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
  states = sorted((tmp_path / "5" / "data").glob("*.json"))
  assert [p.name for p in states] == [
    "process_0-of-2.json",
    "process_1-of-2.json",
  ]
  assert json.loads(states[0].read_text()) != json.loads(states[1].read_text())

  trainable = {"w": jnp.zeros((6, 2))}
  with steps.StepCheckpoints(tmp_path) as checkpoints:
    found, _, _ = checkpoints.restore(5, trainable, ())
    np.testing.assert_array_equal(found["w"][:, 0], [0, 0, 0, 1, 1, 1])
    message = "2 processes stood at different places in the data, this run has"
    with pytest.raises(ValueError, match=message):
      checkpoints.restore(5, trainable, (), data_iterator=iterator())
    # Where they stood at the same place, one can go on from there.
    states[1].write_text(states[0].read_text())
    resumed = iterator()
    checkpoints.restore(5, trainable, (), data_iterator=resumed)
    assert resumed.get_state() == json.loads(states[0].read_text())
    states[0].write_text("{")
    message = "process_0-of-2.json: missing or damaged"
    with pytest.raises(ValueError, match=message):
      checkpoints.restore(5, trainable, (), data_iterator=resumed)
