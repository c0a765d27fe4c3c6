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
from paligemma.models import device

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
    return _einsum_16_bits(equation, x, y)
  return _einsum(equation, x, y)


def _einsum(equation, x, y):
  """einsum_float32, of 16 bits with a single row of x taken twice.

  For one row XLA stores a float32 copy of the matrix, on CPUs (for bfloat16;
  gain in decoding: 2.36 times) and on GPUs (of a T4, float16; of an H200, where
  the product has a batch axis or a sum over two axes; jax 0.10.2).
  """
  plain = functools.partial(
    jnp.einsum, equation, preferred_element_type=jnp.float32
  )
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _einsum_16_bits(equation, x, y):
  return _einsum(equation, x, y)


def _fwd(equation, x, y):
  return _einsum_16_bits(equation, x, y), (x, y)


def _bwd(equation, factors, gradient):
  x, y = factors
  left, right, out = re.split(",|->", equation)
  gradient = gradient.astype(x.dtype)
  by_x = _einsum_16_bits(f"{out},{right}->{left}", gradient, y)
  by_y = _einsum_16_bits(f"{left},{out}->{right}", x, gradient)
  return by_x.astype(x.dtype), by_y.astype(y.dtype)


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


def product(equation: str, x: Array, weight: Matrix) -> Array:
  """einsum_float32 of x in the compute dtype and what `matrix` returns.

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
  multiply = functools.partial(_product, equation)
  if (halved := _halved_axis(left, right, out, x, weight)) is not None:
    return _one_row(equation, halved, x, weight)
  if not outer or x.ndim != 3 or x.shape[1] != 1:
    return multiply(x, weight)

  def batch(x, weight):
    sizes = jax.tree.leaves(weight)[0].shape[: len(outer)]
    x = jnp.broadcast_to(x, (*sizes, *x.shape))
    return _product(f"{outer}{left},{right}->{out}", x, weight)

  return jax.lax.platform_dependent(x, weight, cpu=multiply, default=batch)


def _product(equation, x, weight):
  if not quantization.is_quantized(weight):
    return einsum_float32(equation, x, weight)
  if quantization.kind_of(weight) != "int8":
    return einsum_float32(equation, x, quantization.dequantize(weight, x.dtype))
  out = einsum_float32(equation, x, weight["int8"].astype(x.dtype))
  return out * _as_output(equation, weight[quantization.SCALE])


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
  return out, _product(equation, tangents[0], weight)


def _as_output(equation, scale):
  """Transposes and reshapes the scales of a weight to fit its product."""
  factors, result = equation.split("->")
  weight = factors.split(",")[1]
  left = [f"x{axis}" if axis in result else "1" for axis in weight]
  right = [f"x{axis}" if axis in weight else "1" for axis in result]
  return einops.rearrange(scale, f"{' '.join(left)} -> {' '.join(right)}")


class Adapter(nn.Module):
  """scale * (x A) B, in float32; 0 at the start of the training."""

  lora: lora_lib.Lora
  outputs: int
  dtype: str

  @nn.compact
  def __call__(
    self, x: Float[Array, "B T I"], train: bool
  ) -> Float[Array, "B T O"]:
    rank, dtype = self.lora.rank, self.dtype
    a = matrix(self, "a", _like_peft, (x.shape[-1], rank), dtype)
    b = matrix(self, "b", nn.initializers.zeros, (rank, self.outputs), dtype)
    of = "B" if a.ndim == 3 else ""
    x = nn.Dropout(self.lora.dropout)(x.astype(dtype), deterministic=not train)
    low = einsum_float32(f"BTI,{of}IR->BTR", x, a).astype(dtype)
    return einsum_float32(f"BTR,{of}RO->BTO", low, b) * self.lora.scale


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
  if lora is None or not lora.adapts(target):
    return 0.0
  name = parameters.LORA + target.rpartition("/")[2]
  adapter = Adapter(lora, math.prod(shape), dtype, name=name)
  added = adapter(x.reshape(*x.shape[:2], -1), train)
  return added.reshape(*x.shape[:2], *shape)


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
    out = product(f"{rows}{summed},{summed}{given}->{rows}{given}", x, kernel)
    of_one = x if len(rows) == 2 else x[:, None]
    added = adapt(self.lora, self.target, of_one, self.shape, self.dtype, train)
    out += added if isinstance(added, float) else added.reshape(out.shape)
    bias = jnp.expand_dims(bias.astype(self.dtype), range(len(rows)))
    return keep(out.astype(self.dtype) + bias)
