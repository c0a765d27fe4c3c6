"""What is used where a kernel does not run, or computes wrongly.

The GPU is a CPU, for which the kernels are interpreted or do not compile.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils
from jax.experimental import pallas as pl

from paligemma.decoding import decode
from paligemma.models import device as device_lib
from paligemma.models import paligemma as paligemma_model
from paligemma.models.attention import chunked, flash_gpu, kernels
from paligemma.models.attention import reference as attention
from paligemma.training import sharding

LENGTH = 131
REFUSED = (
  'attention "flash" does not run on NVIDIA H200 with 3 heads of 8 in bfloat16:'
  " ValueError: Only interpret mode is supported on CPU backend."
)


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
  """Says that this CPU is a GPU, on which nothing has been tried."""
  described = jax.sharding.AbstractDevice("NVIDIA H200", 1, "gpu")
  monkeypatch.setattr(device_lib, "current", lambda: described)
  monkeypatch.setattr(device_lib, "local", lambda: jax.local_devices()[0])
  monkeypatch.setattr(attention, "_LOGITS_AT_ONCE", 2**13)
  caches = kernels._try, attention._say_what_is_used
  for cache in caches:
    cache.cache_clear()
  with jax.set_mesh(sharding.make_mesh(devices=jax.devices()[:1])):
    yield
  for cache in caches:
    cache.cache_clear()


def interpret(monkeypatch):
  call = functools.partial(pl.pallas_call, interpret=True)
  monkeypatch.setattr(pl, "pallas_call", call)


def wrong_values(q, k, v, mask, window, *, scale, logits_softcap, device_kind):
  return chunked.attend(
    q, k, v, mask, window, 1, scale=1.1 * scale, logits_softcap=logits_softcap
  )


def wrong_gradient(q, k, v, mask, window, *, device_kind, **settings):
  v = 1.5 * v - jax.lax.stop_gradient(0.5 * v)
  return chunked.attend(q, k, v, mask, window, 1, **settings)


def gradients(implementation="auto"):
  """Those of a layer, computed within a trace as everywhere."""
  rng = np.random.default_rng(0)
  q, k, v = (
    jnp.asarray(rng.standard_normal((2, LENGTH, n, 8)), jnp.bfloat16)
    for n in (3, 1, 1)
  )

  def total(q, k, v):
    out = attention.attend(q, k, v, scale=1.0, implementation=implementation)
    return jnp.sum(out.astype(jnp.float32) ** 2)

  return jax.jit(jax.grad(total, argnums=(0, 1, 2)))(q, k, v)


def test_a_kernel_that_works_is_used(monkeypatch, caplog):
  interpret(monkeypatch)
  used = []

  def record(*args, run=flash_gpu.attend, **settings):
    used.append(args[0].shape[:2])
    return run(*args, **settings)

  monkeypatch.setattr(flash_gpu, "attend", record)
  found = gradients()
  assert used == [(1, LENGTH), (2, LENGTH)]  # tried, then used
  for x, y in zip(found, gradients("chunked"), strict=True):
    x, y = (np.asarray(each, np.float32) for each in (x, y))
    np.testing.assert_allclose(x, y, atol=0.03 * np.abs(y).max())
  gradients("flash")
  assert used[2:] == [(2, LENGTH)]  # not tried again
  assert not caplog.records


def test_a_kernel_that_does_not_compile_is_left_out(caplog):
  found = gradients()
  gradients()
  assert caplog.messages == [f'{REFUSED}; "chunked" is used']
  for x, y in zip(found, gradients("chunked"), strict=True):
    np.testing.assert_array_equal(x, y)
  with pytest.raises(ValueError) as error:  # what is asked for is not replaced
    gradients("flash")
  assert str(error.value) == f'{REFUSED}; use "auto" or "chunked"'


@pytest.mark.parametrize("kernel", [wrong_values, wrong_gradient])
def test_a_kernel_that_computes_wrongly_is_left_out(
  monkeypatch, caplog, kernel
):
  monkeypatch.setattr(flash_gpu, "attend", kernel)
  found = gradients()
  (line,) = caplog.messages
  assert line.startswith('attention "flash" computes wrongly on NVIDIA H200')
  assert line.endswith('from chunks, expected at most 0.03; "chunked" is used')
  for x, y in zip(found, gradients("chunked"), strict=True):
    np.testing.assert_array_equal(x, y)
  with pytest.raises(ValueError, match="computes wrongly on NVIDIA H200 with"):
    gradients("flash")


@pytest.mark.parametrize("number", range(3))
def test_a_gradient_that_is_no_number_is_wrong(monkeypatch, caplog, number):
  """One of those of q, k and v, where all else is right."""

  @jax.custom_jvp
  def spoiled(x):
    return x

  spoiled.defjvp(lambda x, dx: (*x, dx[0] * jnp.nan))

  def nan(*arrays, device_kind, **settings):
    arrays = [spoiled(x) if i == number else x for i, x in enumerate(arrays)]
    return chunked.attend(*arrays, num_chunks=1, **settings)

  monkeypatch.setattr(flash_gpu, "attend", nan)
  gradients()
  assert "computes wrongly" in caplog.text and "nan of the" in caplog.text


def test_a_plan_for_another_machine_tries_nothing(monkeypatch):
  monkeypatch.undo()
  described = jax.sharding.AbstractDevice("NVIDIA H200", 1, "gpu")
  monkeypatch.setattr(device_lib, "current", lambda: described)
  q, k = (jnp.zeros((1, LENGTH, n, 8), jnp.bfloat16) for n in (3, 1))
  assert device_lib.local() is None
  assert kernels.find_problem(q, k, None, None) is None


def test_processes_of_a_mesh_agree(monkeypatch, caplog):
  interpret(monkeypatch)
  told = []

  def gather(found):
    told.append(found.tolist())
    return np.array([False, False, True])

  monkeypatch.setattr(multihost_utils, "process_allgather", gather)
  monkeypatch.setattr(jax, "process_count", lambda: 3)
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  gradients()
  assert told == [False]
  assert caplog.messages == [
    'attention "flash" does not run in process 2; "chunked" is used'
  ]


@pytest.mark.parametrize("kernel", [None, wrong_values])
def test_generate_answers_in_chunks(monkeypatch, caplog, kernel):
  if kernel is not None:
    monkeypatch.setattr(flash_gpu, "attend", kernel)
  model = paligemma_model.make(
    "paligemma_tiny", img={"depth": 1}, llm={"depth": 1}, dtype="bfloat16"
  )
  image = np.random.default_rng(0).uniform(-1, 1, (2, 28, 28, 3))
  text = np.ones((2, LENGTH), np.int32)
  batch = {
    "image": image.astype(np.float32),
    "text": np.arange(2 * LENGTH, dtype=np.int32).reshape(2, -1) + 3,
    "mask_ar": np.zeros_like(text),
    "mask_input": text.astype(bool),
  }
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), batch["image"], text, text
  )
  rng = np.random.default_rng(1)
  params = jax.tree.map(
    lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32),
    shapes["params"],
  )

  def generate(how):
    asked = model.clone(llm=model.llm.clone(attention=how))
    return decode.generate(asked, params, batch, max_decode_len=2)

  found = generate("auto")
  (line,) = caplog.messages
  assert line.endswith('"chunked" is used')
  jax.tree.map(np.testing.assert_array_equal, found, generate("chunked"))
  with pytest.raises(ValueError, match="on NVIDIA H200 with"):
    generate("flash")
