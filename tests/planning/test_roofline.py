import jax
import jax.numpy as jnp
import pytest

from paligemma.planning import chips, roofline

# Round numbers: a byte takes 1 s, an operation 1/10 or, in float32, 1 s.
GPU = chips.CHIPS["t4"]._replace(flops=10, float32_flops=1, bandwidth=1)
TPU = chips.CHIPS["v5e"]._replace(flops=10, float32_flops=10, bandwidth=1)

# As GPUs have it: a stack of weights of which a fusion takes a slice, a product
# of cuBLAS with its workspace, a cache that is updated in place, a loop over
# tokens whose condition is a fusion, and a counter that is ahead by one.
DECODING = """HloModule jit_generate, is_scheduled=true

%slice_of_stack (p0: f16[3,4,8], p1: s32[]) -> f16[4,8] {
  %p0 = f16[3,4,8]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %c0 = s32[] constant(0)
  %ds = f16[1,4,8]{2,1,0} dynamic-slice(%p0, %p1, %c0, %c0), \
dynamic_slice_sizes={1,4,8}
  ROOT %bc = f16[4,8]{1,0} bitcast(%ds)
}

%update (q0: f16[100,8], q1: f16[2,8], q2: s32[]) -> f16[100,8] {
  %q0 = f16[100,8]{1,0} parameter(0)
  %q1 = f16[2,8]{1,0} parameter(1)
  %q2 = s32[] parameter(2)
  ROOT %dus = f16[100,8]{1,0} dynamic-update-slice(%q0, %q1, %q2, %q2)
}

%layer (l: (s32[], f16[3,4,8], f16[2,4])) -> (s32[], f16[3,4,8], f16[2,4]) {
  %l = (s32[], f16[3,4,8]{2,1,0}, f16[2,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%l), index=0
  %stack = f16[3,4,8]{2,1,0} get-tuple-element(%l), index=1
  %x = f16[2,4]{1,0} get-tuple-element(%l), index=2
  %w = f16[4,8]{1,0} fusion(%stack, %i), kind=kLoop, calls=%slice_of_stack, \
metadata={op_name="jit(generate)/while/body/llm/while/body/Block/mlp/slice"}
  %gemm = (f16[2,8]{1,0}, s8[999]{0}) custom-call(%x, %w), \
custom_call_target="__cublas$gemm", metadata={op_name="jit(generate)/while/\
body/llm/while/body/Block/mlp/BTD,DF->BTF/dot_general"}, backend_config={\
"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":\
["1"],"rhs_contracting_dimensions":["0"]}}}
  ROOT %t = (s32[], f16[3,4,8]{2,1,0}, f16[2,4]{1,0}) tuple(%i, %stack, %x)
}

%layers_left (m: (s32[], f16[3,4,8], f16[2,4])) -> pred[] {
  %m = (s32[], f16[3,4,8]{2,1,0}, f16[2,4]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%m), index=0
  %three = s32[] constant(3)
  ROOT %lt = pred[] compare(%j, %three), direction=LT
}

%goes_on (n: s32[], d: pred[]) -> pred[] {
  %n = s32[] parameter(0)
  %one = s32[] constant(1)
  %next = s32[] add(%n, %one)
  %six = s32[] constant(6)
  %below = pred[] compare(%next, %six), direction=LT
  %d = pred[] parameter(1)
  ROOT %and = pred[] and(%below, %d)
}

%token (c: (pred[], f16[100,8], f16[3,4,8], f16[2,4], s32[])) -> (pred[], \
f16[100,8], f16[3,4,8], f16[2,4], s32[]) {
  %c = (pred[], f16[100,8]{1,0}, f16[3,4,8]{2,1,0}, f16[2,4]{1,0}, s32[]) \
parameter(0)
  %cd = pred[] get-tuple-element(%c), index=0
  %cache = f16[100,8]{1,0} get-tuple-element(%c), index=1
  %cs = f16[3,4,8]{2,1,0} get-tuple-element(%c), index=2
  %cx = f16[2,4]{1,0} get-tuple-element(%c), index=3
  %ci = s32[] get-tuple-element(%c), index=4
  %zero = s32[] constant(0)
  %lt0 = (s32[], f16[3,4,8]{2,1,0}, f16[2,4]{1,0}) tuple(%zero, %cs, %cx)
  %while.2 = (s32[], f16[3,4,8]{2,1,0}, f16[2,4]{1,0}) while(%lt0), \
condition=%layers_left, body=%layer, \
backend_config={"known_trip_count":{"n":"3"}}
  %new = f16[2,8]{1,0} copy(%cx)
  %kept = f16[100,8]{1,0} fusion(%cache, %new, %ci), kind=kLoop, calls=%update
  ROOT %ct = (pred[], f16[100,8]{1,0}, f16[3,4,8]{2,1,0}, f16[2,4]{1,0}, \
s32[]) tuple(%cd, %kept, %cs, %cx, %ci)
}

%tokens_left (e: (pred[], f16[100,8], f16[3,4,8], f16[2,4], s32[])) -> pred[] {
  %e = (pred[], f16[100,8]{1,0}, f16[3,4,8]{2,1,0}, f16[2,4]{1,0}, s32[]) \
parameter(0)
  %ed = pred[] get-tuple-element(%e), index=0
  %ei = s32[] get-tuple-element(%e), index=4
  ROOT %go = pred[] fusion(%ei, %ed), kind=kLoop, calls=%goes_on
}

ENTRY %main (a: f16[3,4,8], b: f32[2,4], w32: f32[4,8], k: f16[100,8], \
h: f16[2,4], ok: pred[]) -> f16[100,8] {
  %a = f16[3,4,8]{2,1,0} parameter(0)
  %b = f32[2,4]{1,0} parameter(1)
  %w32 = f32[4,8]{1,0} parameter(2)
  %k = f16[100,8]{1,0} parameter(3)
  %h = f16[2,4]{1,0} parameter(4)
  %ok = pred[] parameter(5)
  %dot = f32[2,8]{1,0} dot(%b, %w32), lhs_contracting_dims={1}, \
rhs_contracting_dims={0}, metadata={op_name="jit(step)/transpose(jvp(Model))/\
llm/while/body/transpose(jvp(Block))/attn/q_einsum/dot_general"}
  %first = s32[] constant(0)
  %start = (pred[], f16[100,8]{1,0}, f16[3,4,8]{2,1,0}, f16[2,4]{1,0}, s32[]) \
tuple(%ok, %k, %a, %h, %first)
  %while.1 = (pred[], f16[100,8]{1,0}, f16[3,4,8]{2,1,0}, f16[2,4]{1,0}, \
s32[]) while(%start), condition=%tokens_left, body=%token
  ROOT %out = f16[100,8]{1,0} get-tuple-element(%while.1), index=1
}
"""


def test_decoding_on_a_gpu():
  found = roofline.analyse(DECODING, GPU)
  assert found.tokens == 5
  copied = 2 * 4 * 8 * 2 + 4  # a slice is read and written, and its index
  gemm = 2 * 4 * 2 + 4 * 8 * 2 + 2 * 8 * 2
  cached = 2 * 2 * 8 * 2 + 4  # what is written, not all 100 rows; an index
  copy = 2 * 4 * 2 + 2 * 8 * 2
  assert found.bytes_per_token == 3 * (copied + gemm) + cached + copy
  first = (2 * 4 + 4 * 8 + 2 * 8) * 4
  assert found.num_bytes == 5 * found.bytes_per_token + first
  assert found.flops == 2 * 2 * 4 * 8 * (15 + 1)
  # Its FLOPs take longer than its bytes only in float32: 128 s. Not 224.
  assert found.by_label()["decoder backward projections"] == (224, 128, 224)
  assert found.by_label()["decoder per token mlp"] == (
    *(15 * (copied + gemm), 15 * 128, 15 * (copied + gemm)),
  )
  assert found.seconds == found.num_bytes
  assert found.float32_products_backward == 1
  slow = roofline.analyse(DECODING, GPU._replace(bandwidth=1e9))
  assert slow.seconds == pytest.approx(128 / 1 + 15 * 128 / 10, rel=1e-3)


# As TPUs have it: products are convolutions, here of 5 matrices whose axis is a
# window of 5 with data at one position each; VMEM costs nothing; a copy into it
# runs beside the rest.
ON_TPU = """HloModule jit_step, is_scheduled=true

%multiply (f0: bf16[5,3,4], f1: bf16[5,4,7]) -> bf16[5,3,7] {
  %f0 = bf16[5,3,4]{2,1,0} parameter(0)
  %f1 = bf16[5,4,7]{2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %conv = bf16[5,3,7]{2,1,0} convolution(%f0, %f1), window={size=5 \
stride=4 pad=0_0 lhs_dilate=5}, dim_labels=0bf_0io->0bf, \
metadata={op_name="jit(step)/jvp(Model)/img/Transformer/MlpBlock_0/dot"}
}

ENTRY %main (x: bf16[5,3,4], y: bf16[5,4,7]) -> bf16[5,3,7] {
  %x = bf16[5,3,4]{2,1,0:T(8,128)(2,1)} parameter(0)
  %y = bf16[5,4,7]{2,1,0:T(8,128)(2,1)} parameter(1)
  %cs = (bf16[5,4,7]{2,1,0:T(8,128)(2,1)S(1)}, bf16[5,4,7]{2,1,0}, u32[]) \
copy-start(%y)
  %cd = bf16[5,4,7]{2,1,0:T(8,128)(2,1)S(1)} copy-done(%cs)
  ROOT %f = bf16[5,3,7]{2,1,0:T(8,128)(2,1)} fusion(%x, %cd), kind=kOutput, \
calls=%multiply
}
"""


def test_a_product_on_a_tpu():
  found = roofline.analyse(ON_TPU, TPU)
  assert found.flops == 2 * 5 * 3 * 4 * 7
  copied, others = 5 * 4 * 7 * 2, 5 * 3 * 4 * 2 + 5 * 3 * 7 * 2
  assert found.num_bytes == copied + others
  assert found.seconds == copied + others  # the bandwidth is for both
  assert found.by_label()["image forward mlp"] == (others, 840, others)
  assert found.by_label()["copies"] == (0, 0, copied)
  part = ON_TPU.replace(
    "copy-start(%y)", "async-start(%y), calls=%cut"
  ).replace("S(1)}, bf16[5,4,7]", "S(1)}, bf16[55,4,7]")
  assert roofline.analyse(part, TPU).num_bytes == copied + others
  computing = roofline.analyse(ON_TPU, TPU._replace(flops=1))
  assert computing.seconds == 840


@pytest.mark.parametrize(("padding", "met"), [(0, 8 * 4), (2, 8 * 4 + 2 * 5)])
def test_a_convolution_counts_where_it_meets_data(padding, met):
  def count(x, w):
    return jax.lax.conv(x, w, (1, 1), [(padding, padding)] * 2)

  shapes = [(2, 3, 11, 11), (5, 3, 4, 4)]
  arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  text = jax.jit(count).lower(*arrays).compile().as_text()
  found = roofline.analyse(text, TPU)
  assert found.flops == 2 * 2 * 5 * 3 * met**2
