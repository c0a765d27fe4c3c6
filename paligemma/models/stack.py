"""Runs a stack of layers and keeps little of them for the backward pass.

Axes: L layer, B batch, T token, D width.
"""

import functools

import jax
import jax.numpy as jnp

from paligemma import parameters
from paligemma.models import microbatch


def scan_layers(block, params, x, layers, rows, *, dtype, num_parts):
  """Applies `block` once per layer to the output of the layer before.

  The backward pass keeps nothing but the input of every layer, rounded to
  `dtype`, and computes each layer again from it, so the value is exact and the
  gradient that of inputs off by one rounding. With float32 it is the gradient,
  as of jax.checkpoint around each layer. Only parameters that are
  differentiated get a gradient. Matrices are converted to `dtype` before the
  layers run, while they are still split over devices, and so are their
  gradients after it. The rows of a batch go through a layer in `num_parts`
  parts, which bounds what stands in memory within a layer.

  Args:
    block: function (params, x, layer, rows, part) -> (x, out), where `params`
      and `layer` are those of one layer, `part` is the int32[] number of the
      part, for its random numbers, and `out` is a tree of arrays [B, ...] to
      look at, which cannot be differentiated. Parts are numbered through over
      devices, so what is drawn depends on how many there are.
    params: tree of float[L, ...].
    x: float[B, T, D].
    layers: tree of arrays [L, ...] that are not differentiated.
    rows: tree of arrays [B, ...] that are not differentiated.
    dtype: compute dtype.
    num_parts: int, divides the rows of each device.

  Returns:
    Tuple of float[B, T, D] and what the blocks gave out, arrays [L, B, ...].

  Raises:
    ValueError: a gradient is asked for through what the blocks gave out.
  """

  def convert(path, p):
    keeps = path[-1].key in parameters.VECTORS
    keeps |= not jnp.issubdtype(p.dtype, jnp.floating)  # quantized
    return p if keeps else p.astype(dtype)

  params = jax.tree_util.tree_map_with_path(convert, params)
  return _scan(block, dtype, num_parts, params, x, layers, rows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _scan(block, dtype, num_parts, params, x, layers, rows):
  y, (_, out) = _forward(block, None, num_parts, params, x, layers, rows)
  return y, out


def _forward(block, kept_dtype, num_parts, params, x, layers, rows):
  def step(x, layer):
    index, layer = layer
    kept = None if kept_dtype is None else x.astype(kept_dtype)

    def on_device(shared, rows):
      params, index, layer = shared

      def one_part(part):
        number, x, rows = part
        return block(_take(params, index, number), x, layer, rows, number)

      return (), microbatch.map_rows(one_part, rows, num_parts)

    shared = (*_to_share(params, index, len(x)), layer)
    _, (x, out) = microbatch.on_each_device(on_device, shared, (x, rows))
    return x, (kept, out)

  return jax.lax.scan(step, x, (_indices(params), layers))


def _scan_fwd(block, dtype, num_parts, params, x, layers, rows):
  marks = jax.tree.map(lambda p: () if p.perturbed else None, params)
  params, x, layers, rows = jax.tree.map(
    lambda p: p.value, (params, x, layers, rows)
  )
  y, (kept, out) = _forward(block, dtype, num_parts, params, x, layers, rows)
  return (y, out), (params, marks, kept, layers, rows)


def _scan_bwd(block, dtype, num_parts, residuals, cotangents):
  del dtype
  dy, of_out = cotangents
  zero = jax.custom_derivatives.SymbolicZero
  if not all(isinstance(x, zero) for x in jax.tree.leaves(of_out)):
    raise ValueError(
      "no gradient passes through what blocks give out on the way: they are "
      "computed again in the backward pass; set remat_policy to another than "
      '"block_inputs"'
    )
  params, marks, kept, layers, rows = residuals
  leaves, treedef = jax.tree.flatten(params)
  trains = [mark is not None for mark in treedef.flatten_up_to(marks)]
  trained = [p for p, t in zip(leaves, trains, strict=True) if t]
  if isinstance(dy, zero):
    dy = jnp.zeros(dy.shape, dy.dtype)

  def step(dy, layer):
    index, kept, layer = layer

    def on_device(shared, rows):
      leaves, index, layer = shared

      def one_part(total, part):
        number, kept, dy, rows = part
        here = _take(leaves, index, number)

        def run(trained, x):
          trained = iter(trained)
          params = [
            next(trained) if t else p for p, t in zip(here, trains, strict=True)
          ]
          return block(treedef.unflatten(params), x, layer, rows, number)[0]

        trained = [p for p, t in zip(here, trains, strict=True) if t]
        _, pull_back = jax.vjp(run, trained, kept.astype(dy.dtype))
        grads, dx = pull_back(dy)
        add = zip(total, grads, strict=True)
        return [t + g.astype(t.dtype) for t, g in add], dx

      nothing = [jnp.zeros(like.shape, like.dtype) for like in sums]
      return microbatch.scan_rows(one_part, nothing, rows, num_parts)

    sums = [jax.ShapeDtypeStruct(p.shape[1:], jnp.float32) for p in trained]
    grads, dx = microbatch.on_each_device(
      on_device,
      (*_to_share(leaves, index, len(dy)), layer),
      (kept, dy, rows),
      sums,
    )
    return dx, [g.astype(p.dtype) for g, p in zip(grads, trained, strict=True)]

  dx, grads = jax.lax.scan(
    step, dy, (_indices(params), kept, layers), reverse=True
  )
  grads = iter(grads)
  grads = treedef.unflatten([next(grads) if t else None for t in trains])
  return grads, dx, None, None


_scan.defvjp(_scan_fwd, _scan_bwd, symbolic_zeros=True)


def _indices(params):
  return jnp.arange(len(jax.tree.leaves(params)[0]))


def _to_share(params, index, rows):
  """The stack and the layer's index in it, or if gathered that layer alone."""
  if microbatch.local_rows(rows) == rows:
    return params, index
  take = functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=1)
  return jax.tree.map(lambda p: take(p, index), params), jnp.int32(0)


def _take(params, index, part):
  """The parameters of a layer, read where they are used.

  `part` >> 31 is 0. XLA does not know that, and so does not copy them in front
  of the loop over parts.
  """
  index = index + (part >> 31)
  take = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False)
  return jax.tree.map(lambda p: take(p, index), params)
