"""Weight matrices and their products: in full or few bits, with adapters.

Products accumulate in float32, forward and backward.

Axes: B batch, T token, I inputs, O outputs, R rank of an adapter.
"""

import functools
import itertools
import math
import operator
import re
from collections.abc import Mapping

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from paligemma import parameters, quantization
from paligemma.lora import config as lora_lib
from paligemma.models import device, microbatch

PRODUCT = "product"

# A weight matrix, or a quantized one: see quantization.py.
Matrix = Array | Mapping[str, Array]


def einsum_float32(equation: str, x: Array, y: Array) -> Array:
  """jnp.einsum of two arrays of one dtype, with a float32 result.

  In the backward pass of 16 bits the gradient of the result is rounded to them
  first, so that all three products are of 16 bits: JAX itself would convert the
  other factor, a weight matrix, to float32. Small gradients of float16 (5.96e-8
  is its smallest number) need a scaled loss, see optimizers.LossScale.

  On CPUs, too, a bfloat16 product is twice as fast if its output is float32
  (jax 0.10.2, AVX-512): ask for it and round.

  Args:
    equation: Of two factors; an axis of only one of them is in the result, too.
  """
  if x.dtype.itemsize == 2:
    return _einsum_16_bits(equation, jnp.float32, x, y)
  return _einsum(equation, jnp.float32, x, y)


def einsum_rounded(equation: str, x: Array, y: Array) -> Array:
  """einsum_float32, rounded to the dtype of the factors.

  NVIDIA's libraries sum in float32 and round where they write: on GPUs, XLA
  would else write the float32 and read it again to round it (jax 0.10.2).
  """
  if x.dtype.itemsize == 2 and device.is_gpu():
    return _einsum_16_bits(equation, x.dtype, x, y)
  return einsum_float32(equation, x, y).astype(x.dtype)


def _einsum(equation, dtype, x, y):
  """einsum_float32, of 16 bits with a single row of x taken twice.

  For one row XLA stores a float32 copy of the matrix, on CPUs (for bfloat16;
  gain in decoding: 2.36 times) and on GPUs (of a T4, float16; of an H200, where
  the product has a batch axis or a sum over two axes; jax 0.10.2).
  """
  plain = functools.partial(jnp.einsum, equation, preferred_element_type=dtype)
  left, right, out = re.split(",|->", equation)
  if x.dtype.itemsize != 2 or not _is_one_row(left, right, x):
    return plain(x, y)
  axis = next(i for i, axis in enumerate(left) if axis not in right)
  both = plain(jnp.repeat(x, 2, axis), y)
  return jax.lax.slice_in_dim(both, 0, 1, axis=out.index(left[axis]))


def _is_one_row(left, right, x):
  """Returns whether a product of x is one with a vector."""
  rows = [n for axis, n in zip(left, x.shape, strict=True) if axis not in right]
  return bool(rows) and set(rows) == {1}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _einsum_16_bits(equation, dtype, x, y):
  return _einsum(equation, dtype, x, y)


def _fwd(equation, dtype, x, y):
  return _einsum_16_bits(equation, dtype, x, y), (x, y)


def _bwd(equation, dtype, factors, gradient):
  del dtype
  x, y = factors
  left, right, out = re.split(",|->", equation)
  gradient = gradient.astype(x.dtype)
  by_x = einsum_rounded(f"{out},{right}->{left}", gradient, y)
  by_y = _by_weight(f"{left},{out}->{right}", x, gradient)
  return by_x, by_y


def _by_weight(equation, x, gradient):
  """The gradient of a weight: float32 until all devices have added theirs."""
  return einsum_float32(equation, x, gradient).astype(x.dtype)


_einsum_16_bits.defvjp(_fwd, _bwd)


def keep(x: Array) -> Array:
  """Marks what remat_policy "products" keeps for the backward pass."""
  return checkpoint_name(x, PRODUCT)


def matrix(
  module: nn.Module,
  name: str,
  init: nn.initializers.Initializer,
  shape: tuple[int, ...],
  dtype: str | None = None,
) -> Matrix:
  """Returns a parameter of a module in its compute dtype, or quantized.

  Without a dtype it is returned as it is stored. Of adapters there may be one
  for each example, on an axis in front, see lora/gather.py.
  """
  found = module.get_variable("params", name)
  if quantization.is_quantized(found):
    return jax.tree.map(jnp.asarray, found)
  if found is not None and found.ndim > len(shape):
    return jnp.asarray(found, dtype)
  return jnp.asarray(module.param(name, init, shape, jnp.float32), dtype)


def product(
  equation: str, x: Array, weight: Matrix, *, rounds: bool = False
) -> Array:
  """einsum_float32 of x in the compute dtype and what `matrix` returns.

  With `rounds` the result is rounded to the dtype of x, as by einsum_rounded.

  With a scale per output the product is that of the integers, scaled after it,
  so that a backend may read them as they are stored. 4 bits have scales within
  a sum and become floats first; for a single row on NVIDIA GPUs only within the
  sum.

  For one token of each example, as in decoding, axes of the weight before those
  that are summed over make it a batch of products: for "BTD,NDH->BTNH" XLA on
  GPUs would otherwise transpose the weight for every token (jax 0.10.2). XLA on
  CPUs does not, and lacks such a product of bfloat16.
  """
  left, right, out = re.split(",|->", equation)
  outer = "".join(itertools.takewhile(lambda axis: axis not in left, right))
  multiply = functools.partial(_product, equation, rounds)
  if (halved := _halved_axis(left, right, out, x, weight)) is not None:
    result = _one_row(equation, halved, x, weight)
    return result.astype(x.dtype) if rounds else result
  if not outer or x.ndim != 3 or x.shape[1] != 1:
    return multiply(x, weight)

  def batch(x, weight):
    sizes = jax.tree.leaves(weight)[0].shape[: len(outer)]
    x = jnp.broadcast_to(x, (*sizes, *x.shape))
    return _product(f"{outer}{left},{right}->{out}", rounds, x, weight)

  return jax.lax.platform_dependent(x, weight, cpu=multiply, default=batch)


def _product(equation, rounds, x, weight):
  einsum = einsum_rounded if rounds else einsum_float32
  if not quantization.is_quantized(weight):
    return einsum(equation, x, weight)
  if quantization.kind_of(weight) != "int8":
    return einsum(equation, x, quantization.dequantize(weight, x.dtype))
  out = einsum_float32(equation, x, weight["int8"].astype(x.dtype))
  out *= _as_output(equation, weight[quantization.SCALE])
  return out.astype(x.dtype) if rounds else out


def _halved_axis(left, right, out, x, weight):
  """Returns the axis of a weight for `_one_row`, None where that is no gain.

  Triton's products, on GPUs since Ampere, read int8 as it is.
  """
  if not (quantization.is_quantized(weight) and device.is_gpu()):
    return None
  kind = quantization.kind_of(weight)
  if kind == "int8" and device.takes_triton():
    return None
  axes = range(len(right)) if kind == "int8" else [len(right) - 1]
  shape = quantization.full_shape(kind, weight[kind])
  even = [i for i in axes if right[i] in out and shape[i] % 2 == 0]
  return even[-1] if even and _is_one_row(left, right, x) else None


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _one_row(equation, halved, x, weight):
  """_product of one row on GPUs, as sums that XLA fuses with the unpacking.

  A product of cuBLAS needs the matrix in 16 bits in memory: 9.6 GB a token of
  PaliGemma 3B in 4 bits (jax 0.10.2). Both halves of a byte are used where it
  is read, and a scale multiplies the sum of its inputs.
  """
  left, right, out = re.split(",|->", equation)
  given = ["x" + axis if axis in right else "1" for axis in left]
  fitting = ["x" + axis if axis in left else "1" for axis in right]
  row = einops.rearrange(x, f"{' '.join(given)} -> {' '.join(fitting)}")
  *_, tiled = summed = [i for i, axis in enumerate(right) if axis not in out]
  halves, scales = quantization.unscaled_halves(weight, halved)

  def in_tiles(array):
    return array.reshape(
      *array.shape[:tiled],
      -1,
      quantization.tile(array.shape[tiled]),
      *array.shape[tiled + 1 :],
    )

  row = in_tiles(row.astype(jnp.float32))
  # Both sums at once: XLA makes one of them a product, of a float32 matrix.
  sums = jax.lax.reduce(
    tuple(in_tiles(half) * row for half in halves),
    (jnp.float32(0),) * 2,
    lambda left, right: tuple(map(operator.add, left, right)),
    dimensions=(tiled + 1,),
  )
  sums = [x * scale for x, scale in zip(sums, scales, strict=True)]
  sums = jnp.concatenate(sums, axis=halved).sum(axis=tuple(summed))
  kept = ["x" + axis for axis in right if axis in out]
  wanted = ["x" + axis if axis in right else "1" for axis in out]
  return einops.rearrange(sums, f"{' '.join(kept)} -> {' '.join(wanted)}")


@_one_row.defjvp
def _(equation, halved, primals, tangents):
  x, weight = primals
  out = _one_row(equation, halved, x, weight)
  return out, _product(equation, False, tangents[0], weight)


def _as_output(equation, scale):
  """Transposes and reshapes the scales of a weight to fit its product."""
  factors, result = equation.split("->")
  weight = factors.split(",")[1]
  left = [f"x{axis}" if axis in result else "1" for axis in weight]
  right = [f"x{axis}" if axis in weight else "1" for axis in result]
  return einops.rearrange(scale, f"{' '.join(left)} -> {' '.join(right)}")


class Adapter(nn.Module):
  """scale * (x A) B, in float32; 0 at the start of the training.

  With a frozen matrix W: x W + scale * (x A) B, which may be rounded already,
  see `_joined`.
  """

  lora: lora_lib.Lora
  outputs: int
  dtype: str

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T I"],
    train: bool,
    frozen: Float[Array, "I O"] | None = None,
  ) -> Float[Array, "B T O"]:
    rank, dtype, scale = self.lora.rank, self.dtype, self.lora.scale
    a = matrix(self, "a", _like_peft, (x.shape[-1], rank), dtype)
    b = matrix(self, "b", nn.initializers.zeros, (rank, self.outputs), dtype)
    of = "B" if a.ndim == 3 else ""
    if frozen is not None and not of:
      scaled = (b.astype(jnp.float32) * scale).astype(dtype)
      return _joined(x, frozen, *map(microbatch.replicate, (a, scaled)))
    out = 0.0
    if frozen is not None:
      out = einsum_float32("BTI,IO->BTO", x, frozen)
    x = nn.Dropout(self.lora.dropout)(x.astype(dtype), deterministic=not train)
    low = einsum_float32(f"BTI,{of}IR->BTR", x, a) * scale
    return out + einsum_float32(f"BTR,{of}RO->BTO", low.astype(dtype), b)


@jax.custom_vjp
def _joined(x, frozen, a, b):
  """x W + (x A) B as products of one matrix.

  W, which XLA copies or unpacks into memory anyway, gets B as further rows or A
  as further columns there. So what is as wide as the hidden values of an MLP is
  written and read by the products with W alone, forward and backward, and needs
  no sum in float32: on a T4 that makes a step of LoRA 1.25 times as fast, by
  its roofline.
  """
  return _joined_fwd(x, frozen, a, b)[0]


def _joined_fwd(x, frozen, a, b):
  if _widens(a, b):
    low = einsum_rounded("BTI,IR->BTR", x, a)
    both = jnp.concatenate([frozen, b], axis=0)
    further = jnp.concatenate([x, low], axis=-1)
    out = einsum_rounded("BTI,IO->BTO", further, both)
  else:
    both = jnp.concatenate([frozen, a], axis=1)
    out = einsum_float32("BTI,IO->BTO", x, both)
    out, low = jnp.split(out, [frozen.shape[1]], axis=-1)
    out += einsum_rounded("BTR,RO->BTO", low.astype(x.dtype), b)
    low = None  # Recomputing it so would take the whole product.
  return out, (x, low, both, a, b)


def _joined_bwd(factors, gradient):
  x, low, both, a, b = factors
  gradient = gradient.astype(x.dtype)
  if _widens(a, b):
    by_x = einsum_float32("BTO,IO->BTI", gradient, both)
    by_x, by_low = jnp.split(by_x, [len(a)], axis=-1)
    by_low = by_low.astype(x.dtype)
    by_x += einsum_rounded("BTR,IR->BTI", by_low, a)
    by_x = by_x.astype(x.dtype)
  else:
    low = einsum_rounded("BTI,IR->BTR", x, a)
    by_low = einsum_rounded("BTO,RO->BTR", gradient, b)
    further = jnp.concatenate([gradient, by_low], axis=-1)
    by_x = einsum_rounded("BTO,IO->BTI", further, both)
  by_a = _by_weight("BTI,BTR->IR", x, by_low)
  by_b = _by_weight("BTR,BTO->RO", low, gradient)
  by_frozen = _by_weight("BTI,BTO->IO", x, gradient)
  return by_x, by_frozen, by_a, by_b


_joined.defvjp(_joined_fwd, _joined_bwd)


def _widens(a, b):
  return len(a) <= b.shape[1]


def _like_peft(key, shape, dtype):
  """Uniform within 1 / sqrt(I), as peft draws A."""
  bound = shape[0] ** -0.5
  return jax.random.uniform(key, shape, dtype, -bound, bound)


def adapt(
  lora: lora_lib.Lora | None,
  target: str,
  x: Float[Array, "B T ..."],
  shape: tuple[int, ...],
  dtype: str,
  train: bool,
) -> Float[Array, "B T ..."] | float:
  """Returns what the adapter of a target adds to a product, in float32.

  Called within a compact module. 0.0 if there is no such adapter.

  Args:
    lora: None for no adapters.
    target: One of parameters.TARGETS.
    x: Summed over all its axes behind T.
    shape: Of the output behind B and T.
    dtype: Compute dtype.
    train: Whether dropout is on.
  """
  if not _adapts(lora, target):
    return 0.0
  adapter = Adapter(lora, math.prod(shape), dtype, name=_adapter_name(target))
  added = adapter(x.reshape(*x.shape[:2], -1), train)
  return added.reshape(*x.shape[:2], *shape)


def adapted_product(
  equation: str,
  x: Float[Array, "B T ..."],
  weight: Matrix,
  lora: lora_lib.Lora | None,
  target: str,
  train: bool,
  *,
  rounds: bool = True,
) -> Float[Array, "B T ..."]:
  """Returns `product` plus `adapt`, with arguments as of both.

  Axes that are summed over follow BT, in the order of those of the weight.
  """
  left, right, out = re.split(",|->", equation)
  dtype = x.dtype.name
  if not _adapts(lora, target):
    return product(equation, x, weight, rounds=rounds)
  if _joins(lora, x, weight, train):
    frozen = weight
    if quantization.is_quantized(weight):
      frozen = quantization.dequantize(weight, dtype)
    sizes = dict(zip(right, frozen.shape, strict=True))
    axes = (f"({' '.join(axes[2:])})" for axes in (left, out))
    frozen = einops.rearrange(frozen, f"{' '.join(right)} -> {' '.join(axes)}")
    adapter = Adapter(lora, frozen.shape[1], dtype, name=_adapter_name(target))
    result = adapter(x.reshape(*x.shape[:2], -1), train, frozen)
    outputs = (sizes[axis] for axis in out[2:])
    result = result.reshape(*x.shape[:2], *outputs)
  else:
    result = product(equation, x, weight)
    result += adapt(lora, target, x, result.shape[2:], dtype, train)
  return result.astype(dtype if rounds else jnp.float32)


def _joins(lora, x, weight, train):
  """Returns whether an adapter's products join those of its matrix.

  Triton's products, on GPUs since Ampere, read int8 as it is.
  """
  if not device.is_gpu() or x.shape[1] == 1 or (train and lora.dropout):
    return False
  is_quantized = quantization.is_quantized(weight)
  is_int8 = is_quantized and quantization.kind_of(weight) == "int8"
  return not (is_int8 and device.takes_triton())


def _adapts(lora, target):
  return lora is not None and lora.adapts(target)


def _adapter_name(target):
  return parameters.LORA + target.rpartition("/")[2]


class Linear(nn.Module):
  """x W + b over the last axes, with the names and values of Flax's Dense.

  Attributes:
    shape: The axes of the output.
    dtype: Compute dtype, also of the output.
    kernel_init, bias_init: Of W as a matrix, and of b.
    axes: How many of the last axes of x are summed over.
    lora, target: Adapters of the tower, and which of them this has.
  """

  shape: tuple[int, ...]
  dtype: str
  kernel_init: nn.initializers.Initializer
  bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()
  axes: int = 1
  lora: lora_lib.Lora | None = None
  target: str = ""

  @nn.compact
  def __call__(
    self, x: Float[Array, "..."], train: bool = False
  ) -> Float[Array, "..."]:
    """Maps [B, T, *I] to [B, T, *O], or [B, *I] to [B, *O]."""
    inputs = x.shape[-self.axes :]
    x = x.astype(self.dtype)

    def init(key, shape, dtype):
      flat = math.prod(inputs), math.prod(self.shape)
      return self.kernel_init(key, flat, dtype).reshape(shape)

    kernel = matrix(self, "kernel", init, (*inputs, *self.shape), self.dtype)
    bias = self.param("bias", self.bias_init, self.shape, jnp.float32)
    rows = "BT"[: x.ndim - self.axes]
    summed, given = "IJ"[: self.axes], "OP"[: len(self.shape)]
    equation = f"{rows}{summed},{summed}{given}->{rows}{given}"
    rounds = not _adapts(self.lora, self.target)
    out = product(equation, x, kernel, rounds=rounds)
    of_one = x if len(rows) == 2 else x[:, None]
    added = adapt(self.lora, self.target, of_one, self.shape, self.dtype, train)
    out += added if isinstance(added, float) else added.reshape(out.shape)
    bias = jnp.expand_dims(bias.astype(self.dtype), range(len(rows)))
    return keep(out.astype(self.dtype) + bias)
