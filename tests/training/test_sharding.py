import json
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from paligemma.training import sharding

P = PartitionSpec


def shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, jnp.float32)


# PaliGemma 3B at 224.
FULL = {
  "img/Transformer/encoder_norm/scale": shape(1152),
  "img/Transformer/encoderblock/LayerNorm_0/scale": shape(27, 1152),
  "img/Transformer/encoderblock/MlpBlock_0/Dense_0/bias": shape(27, 4304),
  "img/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel": shape(
    27, 1152, 4304
  ),
  "img/Transformer/encoderblock/MlpBlock_0/Dense_1/kernel": shape(
    27, 4304, 1152
  ),
  "img/Transformer/encoderblock/MultiHeadDotProductAttention_0/out/kernel": (
    shape(27, 16, 72, 1152)
  ),
  "img/Transformer/encoderblock/MultiHeadDotProductAttention_0/query/bias": (
    shape(27, 16, 72)
  ),
  "img/Transformer/encoderblock/MultiHeadDotProductAttention_0/query/kernel": (
    shape(27, 1152, 16, 72)
  ),
  "img/embedding/kernel": shape(14, 14, 3, 1152),
  "img/head/bias": shape(2048),
  "img/head/kernel": shape(1152, 2048),
  "img/pos_embedding": shape(1, 256, 1152),
  "llm/embedder/input_embedding": shape(257152, 2048),
  "llm/final_norm/scale": shape(2048),
  "llm/layers/attn/attn_vec_einsum/w": shape(18, 8, 256, 2048),
  "llm/layers/attn/kv_einsum/w": shape(18, 2, 1, 2048, 256),
  "llm/layers/attn/q_einsum/w": shape(18, 8, 2048, 256),
  "llm/layers/mlp/gating_einsum": shape(18, 2, 2048, 16384),
  "llm/layers/mlp/linear": shape(18, 16384, 2048),
  "llm/layers/pre_ffw_norm/scale": shape(18, 2048),
}


def specs(shardings):
  return [shardings[name].spec for name in FULL]


def test_full_size_both_axes():
  actual = specs(sharding.infer(FULL, sharding.make_mesh(data=4, model=2)))
  assert actual == [
    P(),
    P(None, "data"),
    P(None, "model"),  # 116,208 elements, but 27 layers: no axis left for data
    P(None, "data", "model"),
    P(None, "model", "data"),
    P(None, "model", None, "data"),
    P(None, "model", "data"),
    P(None, "data", "model"),
    P(None, None, None, "data"),
    P(),
    P(None, "data"),
    P(None, None, "data"),
    P("model", "data"),
    P(),
    P(None, "model", None, "data"),
    P(None, None, None, "data"),  # one kv head cannot be split
    P(None, "model", "data"),
    P(None, None, "data", "model"),
    P(None, "model", "data"),
    P(None, "data"),
  ]


def test_full_size_data_only_splits_the_largest_divisible_axis():
  actual = specs(sharding.infer(FULL, sharding.make_mesh()))
  assert actual == [
    P(),
    P(None, "data"),
    P(None, "data"),
    P(None, None, "data"),
    P(None, "data"),
    P(None, None, None, "data"),
    P(None, None, "data"),
    P(None, "data"),
    P(None, None, None, "data"),
    P(),
    P(None, "data"),
    P(None, None, "data"),
    P("data"),
    P(),
    P(None, None, None, "data"),
    P(None, None, None, "data"),
    P(None, None, "data"),
    P(None, None, None, "data"),
    P(None, "data"),
    P(None, "data"),
  ]


def test_full_size_model_only():
  mesh = sharding.make_mesh(data=1, model=8)
  shardings = sharding.infer(FULL, mesh)
  split = {
    name: sharding.describe(s) for name, s in shardings.items() if s.spec != P()
  }
  block = "img/Transformer/encoderblock"
  assert split == {
    f"{block}/MlpBlock_0/Dense_0/bias": "model:1",
    f"{block}/MlpBlock_0/Dense_0/kernel": "model:2",
    f"{block}/MlpBlock_0/Dense_1/kernel": "model:1",
    f"{block}/MultiHeadDotProductAttention_0/out/kernel": "model:1",
    f"{block}/MultiHeadDotProductAttention_0/query/bias": "model:1",
    f"{block}/MultiHeadDotProductAttention_0/query/kernel": "model:2",
    "llm/embedder/input_embedding": "model:0",
    "llm/layers/attn/attn_vec_einsum/w": "model:1",
    "llm/layers/attn/q_einsum/w": "model:1",
    "llm/layers/mlp/gating_einsum": "model:3",
    "llm/layers/mlp/linear": "model:1",
  }


def test_grouped_kv_heads_are_split_and_layers_never_are():
  # 8 layers, which the mesh divides too.
  gqa = {"llm/layers/attn/kv_einsum/w": shape(8, 2, 4, 7, 5)}
  loop = {"llm/layers/3/attn/kv_einsum/w": shape(2, 4, 7, 5)}
  mha = {"llm/layers/attn/qkv_einsum/w": shape(8, 3, 4, 7, 5)}
  mesh = sharding.make_mesh(data=2, model=4)
  (stacked,) = sharding.infer(gqa, mesh).values()
  (single,) = sharding.infer(loop, mesh).values()
  (fused,) = sharding.infer(mha, mesh).values()
  assert stacked.spec == P(None, None, "model")
  assert single.spec == P(None, "model")
  assert fused.spec == P(None, None, "model")
  # Eight parts of four heads: whole on every device.
  (whole,) = sharding.infer(gqa, sharding.make_mesh(1, 8)).values()
  assert whole.spec == P()


def test_rules_first_match():
  rules = [("img/.*", "replicate"), (".*", "fsdp")]
  shardings = sharding.infer(FULL, sharding.make_mesh(2, 4), rules)
  for name, leaf in shardings.items():
    if name.startswith("img/"):
      assert leaf.spec == P(), name
  assert shardings["llm/embedder/input_embedding"].spec == P("model", "data")


def test_describe():
  mesh = sharding.make_mesh(2, 4)
  named = {
    P(): "replicated",
    P(None, None): "replicated",
    P("model", "data"): "data:1 model:0",
    P(None, "model"): "model:1",
    P(None, ("data", "model")): "data:1 model:1",
  }
  for spec, expected in named.items():
    assert sharding.describe(NamedSharding(mesh, spec)) == expected


def loss(params, x):
  hidden = jnp.tanh(x @ params["llm/layers/mlp/gating_einsum"])
  return jnp.mean(jnp.square(hidden @ params["llm/layers/mlp/linear"]))


@pytest.mark.parametrize(("data", "model"), [(8, 1), (2, 4), (1, 8)])
def test_sharded_is_single_device(data, model):
  rng = np.random.default_rng(0)
  params = {
    "llm/layers/mlp/gating_einsum": rng.normal(size=(24, 1000)) * 0.1,
    "llm/layers/mlp/linear": rng.normal(size=(1000, 40)) * 0.1,
  }
  params = {name: jnp.asarray(p, jnp.float32) for name, p in params.items()}
  x = rng.normal(size=(16, 24)).astype(np.float32)
  step = jax.jit(jax.value_and_grad(loss))
  value, grads = step(params, x)

  mesh = sharding.make_mesh(data, model)
  shardings = sharding.infer(params, mesh)
  placed = jax.device_put(params, shardings)
  batch = sharding.put_batch({"x": x}, mesh)["x"]
  for leaf in placed.values():
    assert leaf.addressable_shards[0].data.size == leaf.size // 8
  sharded_value, sharded_grads = jax.jit(
    step, out_shardings=(sharding.replicated(mesh), shardings)
  )(placed, batch)
  np.testing.assert_allclose(sharded_value, value, rtol=1e-5)
  for name, grad in sharding.fetch(sharded_grads).items():
    assert isinstance(grad, np.ndarray)
    np.testing.assert_allclose(grad, grads[name], rtol=1e-5, atol=1e-6)


def test_optimizer_state_follows_its_parameters():
  params = {
    "llm/layers/mlp/linear": shape(3, 256, 128),
    "llm/final_norm/scale": shape(128),
  }
  mesh = sharding.make_mesh(4, 2)
  shardings = sharding.infer(params, mesh)
  adam = jax.eval_shape(optax.scale_by_adam().init, params)
  placed = sharding.infer_state(adam, params, shardings, mesh)
  assert placed.count.spec == P()
  assert placed.mu == placed.nu == shardings
  assert placed.mu["llm/layers/mlp/linear"].spec == P(None, "model", "data")
  factored = jax.eval_shape(optax.scale_by_factored_rms().init, params)
  placed = sharding.infer_state(factored, params, shardings, mesh)
  assert placed.v_row["llm/layers/mlp/linear"].spec == P()


def test_put_batch_then_fetch_is_the_batch():
  mesh = sharding.make_mesh(4, 2)
  batch = {
    "text": np.arange(12 * 5, dtype=np.int32).reshape(12, 5),
    "_mask": np.arange(12) < 7,
  }
  placed = sharding.put_batch(batch, mesh)
  assert placed["text"].sharding == sharding.batch_sharding(mesh)
  assert placed["text"].addressable_shards[0].data.shape == (3, 5)
  for name, array in sharding.fetch(placed).items():
    np.testing.assert_array_equal(array, batch[name])
    assert array.dtype == batch[name].dtype


PROCESS = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
process, port, out = int(sys.argv[1]), *sys.argv[2:]
jax.distributed.initialize(f"localhost:{port}", 2, process)
import numpy as np
from paligemma.training import sharding
mesh = sharding.make_mesh(data=4, model=2)
rows = np.arange(4 * 3, dtype=np.float32).reshape(4, 3) + 100 * process
x = sharding.put_batch({"x": rows}, mesh)["x"]
doubled = jax.jit(lambda x: (2 * x, x.sum()))(x)
try:
  sharding.make_mesh(data=1, model=8)
except ValueError as error:
  message = str(error)
fetched = jax.tree.map(np.ndarray.tolist, sharding.fetch((x, *doubled)))
with open(out, "w") as f:
  json.dump([list(x.shape), fetched, message], f)
"""


def test_two_processes_are_one(tmp_path):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
  outputs = [tmp_path / "0.json", tmp_path / "1.json"]
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", PROCESS, str(i), str(port), str(output)],
      env=environment,
    )
    for i, output in enumerate(outputs)
  ]
  try:
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
  finally:
    for process in processes:
      process.kill()
  rows = np.arange(4 * 3, dtype=np.float32).reshape(4, 3)
  whole = np.concatenate([rows, rows + 100])
  for output in outputs:
    size, (x, doubled, total), message = json.loads(output.read_text())
    assert size == [8, 3]
    np.testing.assert_array_equal(x, whole)
    np.testing.assert_array_equal(doubled, 2 * whole)
    assert total == whole.sum()
    assert message == (
      "mesh model=8 spans several processes of 4 devices, which would share "
      "one part of the batch; use one of 1, 2, 4"
    )


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (
      {"data": 3, "model": 2},
      "data=3 x model=2 needs 6 devices, found 8; use da",
    ),
    ({"model": 3}, "model=3 does not divide the 8 devices; .* 1, 2, 4, 8"),
    ({"model": 0}, "data=-1, model=0: expected sizes of 1 or more"),
    ({"data": 0}, "data=0, model=1: expected sizes of 1 or more"),
    ({"data": -2}, "data=-2, model=1: expected sizes of 1 or more"),
  ],
)
def test_mesh_messages(arguments, message):
  with pytest.raises(ValueError, match=message):
    sharding.make_mesh(**arguments)


def test_mesh_of_some_devices():
  mesh = sharding.make_mesh(model=2, devices=jax.devices()[:6])
  assert dict(mesh.shape) == {"data": 3, "model": 2}


def test_batch_message():
  message = (
    'batch_size 12 is not divisible by the 8 devices of mesh axis "data"; '
    "use a multiple of 8"
  )
  mesh = sharding.make_mesh()
  with pytest.raises(ValueError, match=message):
    sharding.put_batch({"x": np.zeros([12, 3])}, mesh)
  with pytest.raises(ValueError, match=message):
    sharding.check_batch_size(12, mesh)
  sharding.check_batch_size(16, mesh)


def test_strategy_message():
  mesh = sharding.make_mesh()
  with pytest.raises(ValueError, match=r'strategy "fdsp".*Did you mean "fsdp"'):
    sharding.infer(FULL, mesh, [(".*", "fdsp")])


def test_quantized_matrices_are_split_like_those_in_full():
  mesh = sharding.make_mesh(data=2, model=4)
  found = sharding.infer(
    {
      "llm/layers/mlp/gating_einsum/int8": shape(3, 2, 128, 512),
      "llm/layers/mlp/gating_einsum/scale": shape(3, 2, 1, 512),
      "llm/layers/mlp/linear/int4": shape(3, 512, 64),
      "llm/layers/mlp/linear/scale": shape(3, 8, 128),
    },
    mesh,
  )
  assert [place.spec for place in found.values()] == [
    P(None, None, "data", "model"),
    P(None, None, None, "model"),
    P(None, "model", "data"),
    P(None, "model"),
  ]
