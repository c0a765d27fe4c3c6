import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from paligemma import init, tree
from paligemma.checkpoints import npz
from paligemma.training import optimizers, sharding
from trainers import state

SHAPES = {
  "img/head/bias": (7,),
  "img/head/kernel": (136, 128),
  "llm/embed": (264, 64),
  "llm/final_norm/scale": (5,),
}
RULES = ((".*", "fsdp"),)


class Small:
  """What the state asks of a model: parameters, two of them worth splitting."""

  def init_inputs(self, res):
    return ()

  def init(self, key):
    keys = jax.random.split(key, len(SHAPES))
    flat = {
      name: jax.random.normal(key, shape)
      for key, (name, shape) in zip(keys, SHAPES.items(), strict=True)
    }
    return {"params": tree.unflatten(flat)}


@pytest.fixture(scope="module")
def mesh():
  return sharding.make_mesh(data=8)


def abstract(mesh, trainable=("llm/.*",), frozen_dtype="bfloat16"):
  config = ConfigDict(
    dict(res=28, trainable=trainable, frozen_dtype=frozen_dtype, sharding=RULES)
  )
  return state.abstract_params(Small(), config, mesh)


def make_optimizer(names, name="sgd", **arguments):
  return optimizers.make(
    list(names), total_steps=9, optimizer=name, optimizer_args=arguments
  )[0]


def test_trainable_is_float32_and_frozen_as_told(mesh):
  trainable, frozen = abstract(mesh)
  assert {name: leaf.dtype for name, leaf in trainable.items()} == {
    "llm/embed": jnp.float32,
    "llm/final_norm/scale": jnp.float32,
  }
  assert {name: leaf.dtype for name, leaf in frozen.items()} == {
    "img/head/kernel": jnp.bfloat16,
    "img/head/bias": jnp.float32,  # too small for bfloat16 to save anything
  }
  both = {**trainable, **frozen}
  assert {name: leaf.shape for name, leaf in both.items()} == SHAPES
  assert both["llm/embed"].sharding.spec == PartitionSpec("data")
  assert both["img/head/bias"].sharding.spec == PartitionSpec()


def test_a_regex_that_trains_nothing_is_an_error(mesh):
  with pytest.raises(
    ValueError, match='rule "llm/embod" matches none of 4'
  ) as e:
    abstract(mesh, trainable=("img/.*", "llm/embod"))
  assert 'Did you mean "llm/embed"?' in str(e.value)


def test_optimizer_state_is_of_the_trainable_leaves_and_lies_with_them(mesh):
  trainable, _ = abstract(mesh)
  momentum = make_optimizer(trainable, momentum=0.9)
  found = state.abstract_state(momentum, trainable, mesh=mesh, ema=True)
  assert found.trainable == trainable
  assert found.opt_state.direction.trace == trainable
  assert found.ema == trainable
  everywhere = sharding.replicated(mesh)
  for count in (found.step, found.opt_state.count):
    assert (count.shape, count.sharding) == ((), everywhere)

  plain = make_optimizer(trainable)
  found = state.abstract_state(plain, trainable, mesh=mesh, ema=False)
  assert found.ema is None
  (count,) = jax.tree.leaves(found.opt_state)
  assert (count.shape, count.dtype) == ((), jnp.int32)


def test_random_parameters_do_not_depend_on_the_mesh(mesh):
  alone = sharding.make_mesh(devices=jax.devices()[:1])
  drawn = []
  for where in (mesh, alone):
    trainable, frozen = abstract(where)
    both = {**trainable, **frozen}
    drawn.append(init.random_params(Small(), 28, both, seed=3))
    for name, leaf in both.items():
      assert drawn[-1][name].sharding == leaf.sharding
      assert drawn[-1][name].dtype == leaf.dtype
  for name, array in drawn[0].items():
    np.testing.assert_array_equal(array, drawn[1][name], err_msg=name)
  other = init.random_params(Small(), 28, both, seed=4)
  assert not np.array_equal(other["llm/embed"], drawn[0]["llm/embed"])


def test_new_state_takes_over_the_parameters(mesh):
  trainable, _ = abstract(mesh)
  adam = make_optimizer(trainable, "adam")
  shapes = state.abstract_state(adam, trainable, mesh=mesh, ema=True)
  given = {
    name: jax.device_put(np.ones(leaf.shape, leaf.dtype), leaf.sharding)
    for name, leaf in trainable.items()
  }
  found = state.create_state(adam, given, shapes)
  assert all(array.is_deleted() for array in given.values())
  assert jax.tree.structure(found) == jax.tree.structure(shapes)
  for leaf, like in zip(
    jax.tree.leaves(found), jax.tree.leaves(shapes), strict=True
  ):
    assert (leaf.shape, leaf.dtype) == (like.shape, like.dtype)
    assert leaf.sharding == like.sharding
  assert int(found.step) == 0
  for name, array in found.trainable.items():
    np.testing.assert_array_equal(array, np.ones(array.shape), err_msg=name)
    np.testing.assert_array_equal(found.ema[name], array)
  # Two buffers: the step gives each away.
  jax.jit(lambda x: jax.tree.map(jnp.negative, x), donate_argnums=0)(found)


@pytest.fixture(scope="module")
def arrays():
  rng = np.random.default_rng(0)
  return {
    name: rng.normal(size=shape).astype(np.float32)
    for name, shape in SHAPES.items()
  }


def test_loaded_parameters_are_cast_and_placed(tmp_path, mesh, arrays):
  npz.save(tmp_path / "a.npz", arrays)
  trainable, frozen = abstract(mesh)
  both = {**trainable, **frozen}
  found = state.load_params(tmp_path / "a.npz", both, both)
  assert found.keys() == SHAPES.keys()
  for name, array in found.items():
    assert (array.dtype, array.sharding) == (
      both[name].dtype,
      both[name].sharding,
    )
    expected = jnp.asarray(arrays[name], both[name].dtype)
    np.testing.assert_array_equal(array, expected, err_msg=name)
  shard = found["llm/embed"].addressable_shards[3]
  np.testing.assert_array_equal(shard.data, arrays["llm/embed"][99:132])

  found = state.load_params(tmp_path / "a.npz", both, frozen)
  assert found.keys() == frozen.keys()


def test_all_leaves_that_differ_are_named(tmp_path, mesh, arrays):
  trainable, frozen = abstract(mesh)
  wrong = {**arrays, "img/head/kernel": np.zeros((3, 128), np.float32)}
  wrong["llm/embedd"] = wrong.pop("llm/embed")
  npz.save(tmp_path / "a.npz", wrong)
  with pytest.raises(ValueError, match="does not fit the model, 3 leaves") as e:
    state.load_params(tmp_path / "a.npz", {**trainable, **frozen}, trainable)
  message = str(e.value)
  assert message.startswith(f"{tmp_path / 'a.npz'}: ")
  assert "img/head/kernel: found shape (3, 128), expected (136, 128)" in message
  assert "llm/embed: missing, expected (264, 64)" in message
  assert "llm/embedd: unexpected, found (264, 64)" in message
  assert "\n" not in message
