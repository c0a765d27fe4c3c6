import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from paligemma.planning import collectives
from paligemma.training import sharding

P = PartitionSpec


@pytest.fixture(scope="module")
def mesh():
  return sharding.make_mesh(data=4, model=2)


def compiled_text(mesh, function, *arrays, out=P()):
  """HLO of a function that runs on every device, on (shape, dtype, spec)."""
  mapped = jax.shard_map(
    function,
    mesh=mesh,
    in_specs=tuple(spec for _, _, spec in arrays),
    out_specs=out,
    check_vma=False,
  )
  leaves = [
    jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
    for shape, dtype, spec in arrays
  ]
  return jax.jit(mapped).lower(*leaves).compile().as_text()


def expected(**kinds):
  found = dict.fromkeys(collectives.KINDS, 0)
  return found | {k.replace("_", "-"): v for k, v in kinds.items()}


X = ((8, 12), jnp.float32, P("data"))  # 2 x 12 floats a device: 96 bytes


@pytest.mark.parametrize(
  ("function", "out", "found"),
  [
    (
      lambda x: jax.lax.all_gather(x, "data", tiled=True),
      P(),
      {"all_gather": 8 * 12 * 4},
    ),
    (lambda x: jax.lax.psum(x, "data"), P(), {"all_reduce": 2 * 12 * 4}),
    (
      lambda x: jax.lax.psum_scatter(
        x, "data", scatter_dimension=1, tiled=True
      ),
      P(None, "data"),
      {"reduce_scatter": 2 * 12 * 4},
    ),
    (
      lambda x: jax.lax.all_to_all(
        x, "data", split_axis=1, concat_axis=0, tiled=True
      ),
      P(None, "data"),
      {"all_to_all": 2 * 12 * 4},
    ),
    (
      lambda x: jax.lax.ppermute(x, "data", [(0, 1), (1, 2), (2, 3), (3, 0)]),
      P("data"),
      {"collective_permute": 2 * 12 * 4},
    ),
    (lambda x: x * 2, P("data"), {}),
  ],
)
def test_every_kind(mesh, function, out, found):
  hlo = compiled_text(mesh, function, X, out=out)
  assert collectives.bytes_by_kind(collectives.find(hlo)) == expected(**found)


def test_loops_count_with_their_length(mesh):
  def layer(x, _):
    gathered = jax.lax.all_gather(x, "data", tiled=True)
    x, _ = jax.lax.scan(
      lambda x, _: (jax.lax.psum(x, "data") * 0.5, None), x, length=3
    )
    return x + jnp.sum(gathered), None

  def function(x):
    x, _ = jax.lax.scan(layer, x, length=5)
    return jax.lax.psum(x, "model")

  hlo = compiled_text(mesh, function, X, out=P("data"))
  assert collectives.bytes_by_kind(collectives.find(hlo)) == expected(
    all_gather=5 * 8 * 12 * 4, all_reduce=(5 * 3 + 1) * 2 * 12 * 4
  )


# As TPUs have it: layouts with parentheses, an index in a comment, no noted
# length of a loop, a counter that goes from 2 in steps of 2, one asynchronous
# all-gather in two fusions, a reduce-scatter written as an all-reduce, and an
# all-gather in two halves.
TPU = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%all-reduce-scatter.1 (p: f32[24,7]) -> f32[6,7] {
  %p = f32[24,7]{1,0:T(8,128)S(1)} parameter(0)
  %r = f32[24,7]{1,0:T(8,128)} all-reduce(%p), channel_id=3, to_apply=%add
  ROOT %s = f32[6,7]{1,0:T(8,128)} dynamic-slice(%r), dynamic_slice_sizes={6,7}
}

%started (q: bf16[6,7]) -> bf16[24,7] {
  %q = bf16[6,7]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %g = bf16[24,7]{1,0:T(8,128)(2,1)} all-gather(%q), channel_id=9, \
frontend_attributes={chain_id="4"}
}

%finished (q: bf16[6,7]) -> bf16[24,7] {
  %q = bf16[6,7]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %g2 = bf16[24,7]{1,0:T(8,128)(2,1)} all-gather(%q), channel_id=9, \
frontend_attributes={chain_id="4"}
}

%condition (c: (s32[], f32[24,7])) -> pred[] {
  %c = (s32[]{:T(128)}, f32[24,7]{1,0:T(8,128)S(1)}) parameter(0)
  %end = s32[]{:T(128)} constant(8)
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %end), direction=LT
}

%body (c: (s32[], f32[24,7])) -> (s32[], f32[24,7]) {
  %c = (s32[]{:T(128)}, /*index=1*/f32[24,7]{1,0:T(8,128)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  %x = f32[24,7]{1,0:T(8,128)S(1)} get-tuple-element(%c), index=1
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %two)
  %rs = f32[6,7]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %h = bf16[6,7]{1,0:T(8,128)(2,1)} convert(%rs)
  %f1 = bf16[24,7]{1,0} fusion(%h), kind=kCustom, calls=%started
  %f2 = bf16[24,7]{1,0} fusion(%h), kind=kCustom, calls=%finished
  ROOT %t = (s32[]{:T(128)}, f32[24,7]{1,0:T(8,128)S(1)}) tuple(%next, %x)
}

ENTRY %main (w: f32[24,7], k: f32[6,7]) -> f32[24,7] {
  %w = f32[24,7]{1,0:T(8,128)} parameter(0), metadata={op_name="calls=%add"}
  %k = f32[6,7]{1,0:T(8,128)} parameter(1)
  %first = s32[]{:T(128)} constant(2)
  %start = (s32[]{:T(128)}, f32[24,7]{1,0:T(8,128)S(1)}) tuple(%first, %w)
  %while.1 = (s32[]{:T(128)}, f32[24,7]{1,0:T(8,128)S(1)}) while(%start), \
condition=%condition, body=%body
  %ag = (f32[6,7]{1,0}, f32[24,7]{1,0}) all-gather-start(%k), channel_id=5
  %agd = f32[24,7]{1,0} all-gather-done(%ag)
  ROOT %out = f32[24,7]{1,0} get-tuple-element(%while.1), index=1
}
"""


def test_the_program_of_a_tpu(mesh):
  found = collectives.find(TPU)
  times = 3  # 2, 4, 6
  assert collectives.bytes_by_kind(found) == expected(
    all_gather=times * 24 * 7 * 2 + 24 * 7 * 4,
    reduce_scatter=times * 24 * 7 * 4,
  )


def test_what_a_step_waits_for():
  found = collectives.find(TPU)
  assert collectives.synchronous_gathers(found) == 0
  in_turn = TPU.replace('frontend_attributes={chain_id="4"}', "a={}").replace(
    "channel_id=5", 'channel_id=5, backend_config={"is_sync":true}'
  )
  found = collectives.find(in_turn)
  assert collectives.synchronous_gathers(found) == 3 * 2 + 1


def test_a_scatter_done_as_an_all_reduce():
  found = collectives.find(TPU)
  assert collectives.scatters_as_all_reduce(found) == 0
  noted = 'parameter(0), metadata={op_name="reduce_scatter"}'
  as_scatter = TPU.replace(
    "%a = f32[]{:T(128)} parameter(0)", f"%a = f32[] {noted}"
  )
  found = collectives.find(as_scatter)  # fused with the slice: a real one
  assert collectives.scatters_as_all_reduce(found) == 0
  found = collectives.find(as_scatter.replace("all-reduce-scatter", "reduced"))
  assert collectives.scatters_as_all_reduce(found) == 3 * 24 * 7 * 4


def test_gathered_parameters_are_told_by_their_size(mesh):
  def leaf(shape, *axes):
    place = NamedSharding(mesh, P(*axes))
    return jax.ShapeDtypeStruct(shape, np.float32, sharding=place)

  found = [
    collectives.Collective("all-gather", (3 * 20,), 240, 5),  # a layer
    collectives.Collective("all-gather", (44, 8), 208, 1),  # two at once
    collectives.Collective(
      "all-gather", (44, 9), 212, 1
    ),  # one is no parameter
    collectives.Collective("all-reduce", (3 * 20,), 240, 1),
  ]
  params = {
    "llm/layers/w": leaf((5, 6, 20), None, "model", "data"),
    "img/w": leaf((4, 11), "data"),
    "img/b": leaf((8,)),
  }
  assert collectives.parameter_bytes(found, params) == 5 * 240 + 208
