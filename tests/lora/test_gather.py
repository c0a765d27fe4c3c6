"""Examples with different adapters in one batch equal each adapter alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma import init, tree
from paligemma.lora import apply as lora
from paligemma.lora import gather
from paligemma.models import paligemma as paligemma_model

RES, VOCABULARY, ROWS = 28, 61, 7
ADAPTERS = [  # of each model; None has none
  None,
  dict(rank=3, alpha=2.0, targets=["llm/attn/q", "llm/attn/v"]),
  dict(rank=5, alpha=9.0, rslora=True, targets=["llm/.*"]),
  dict(rank=2, alpha=3.0, targets=["img/.*", "llm/mlp/down"]),
]
ADAPTER = np.array([3, 0, 1, 2, 1, 3, 2], np.int32)
RNG = np.random.default_rng(0)
IMAGE = RNG.uniform(-1, 1, (ROWS, RES, RES, 3)).astype(np.float32)
TEXT = RNG.integers(3, VOCABULARY, (ROWS, 5))


def build(scan):
  return paligemma_model.make(
    "paligemma2_tiny",
    vocab_size=VOCABULARY,
    img=dict(width=12, depth=1, mlp_dim=17, num_heads=3, scan=scan),
    llm=dict(
      width=14,
      depth=2,
      mlp_dim=19,
      num_heads=6,
      num_kv_heads=3,
      head_dim=10,
      scan=scan,
    ),
  )


def drawn(shapes, seed):
  rng = np.random.default_rng(seed)
  return {
    name: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32)
    for name, x in tree.flatten(shapes).items()
  }


@pytest.fixture(scope="module", params=["stacked", "layers apart"])
def adapted(request):
  """Models that share all but their adapters."""
  model = build(scan=request.param == "stacked")
  params = tree.unflatten(drawn(init.shapes(model, RES), seed=0))
  found = []
  for seed, fields in enumerate(ADAPTERS, 1):
    if fields is None:
      found.append((model, params))
      continue
    with_adapters, both = lora.enable_lora(model, params, **fields)
    new = drawn(lora.adapter_shapes(with_adapters), seed)
    found.append((with_adapters, tree.unflatten(tree.flatten(both) | new)))
  return found


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params):
  return model.apply({"params": params}, IMAGE, TEXT, np.zeros_like(TEXT))[0]


def test_each_example_has_its_own_adapter(adapted):
  model, params = gather.stack(adapted)
  found = logits(model, gather.take(params, ADAPTER))
  largest = np.abs(found).max()
  alone = [logits(*x) for x in adapted]
  for row, i in enumerate(ADAPTER):
    np.testing.assert_allclose(
      found[row], alone[i][row], rtol=0, atol=1e-5 * largest
    )
    for j in {0, 1, 2, 3} - {i}:
      assert np.abs(found[row] - alone[j][row]).max() > 0.01 * largest


def test_in_16_bits_an_example_does_not_depend_on_its_neighbours(adapted):
  model, params = gather.stack(adapted)
  model = model.clone(
    img=model.img.clone(dtype="bfloat16"), llm=model.llm.clone(dtype="bfloat16")
  )
  found = logits(model, gather.take(params, ADAPTER))
  for i in range(len(ADAPTERS)):
    alike = logits(model, gather.take(params, np.full_like(ADAPTER, i)))
    rows = np.flatnonzero(i == ADAPTER)
    np.testing.assert_allclose(found[rows], alike[rows], atol=1e-5)


def test_ranks_are_padded_and_targets_joined(adapted):
  model, params = gather.stack(adapted)
  assert model.llm.lora.rank == 5
  assert model.llm.lora.scale == 1
  flat = tree.flatten(params)
  names = [name for name, adapts in lora.is_adapter(flat).items() if adapts]
  assert {name.partition("/")[0] for name in names} == {"img", "llm"}
  for name in names:
    assert flat[name].shape[-3] == len(ADAPTERS)
    assert not flat[name][..., 0, :, :].any()  # the first has none


def test_of_a_decoder_alone_only_its_adapters_are_stacked(adapted):
  alone = [(m.clone(img=None), {"llm": p["llm"]}) for m, p in adapted]
  model, params = gather.stack(alone)
  assert not any("img" in target for target in model.llm.lora.targets)
  assert params.keys() == {"llm"}
  model, params = gather.stack(alone[:1])
  assert model.llm.lora is None
  assert not any(lora.is_adapter(tree.flatten(params)).values())
