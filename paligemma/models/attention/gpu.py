"""Attention by tokamax's kernel, for NVIDIA GPUs.

It was lowered for CUDA, forward and backward, on a machine without a GPU: it
accepts these arguments and makes no array of T x S. It has not been run on a
GPU, which is why "auto" never chooses it.

Axes: B batch, T query position, S key position, N query heads, K key/value
heads, H head dim.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from paligemma.models.attention.masks import Mask, pad_axis

_TILE = 128  # of tokamax's kernel, which does not pad by itself


def tokamax(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B S K H"],
  v: Float[Array, "B S K H"],
  mask: Mask | None,
  window: int | Int[Array, ""] | None = None,
  *,
  scale: float,
  logits_softcap: float | None = None,
) -> Float[Array, "B T N H"]:
  """Attends as reference.attend, on Hopper and Blackwell GPUs.

  The kernel takes a range of keys for each query. tokamax's Triton kernel, for
  older GPUs, would make an array of T x S in the backward pass and has no soft
  cap there; its kernel for TPUs takes no ranges (all of 0.0.12). It reads
  absl's flags, from sys.argv if the program has not parsed them:
  absl.flags.FLAGS([""]) does.

  Args:
    q, k, v: bfloat16 or float16.
    mask: Of masks.make_mask, and so T = S; or None.

  Raises:
    ValueError: tokamax is not installed.
    NotImplementedError: It cannot do this.
  """
  try:
    import tokamax as library
  except ImportError as error:
    raise ValueError(
      f'attention "tokamax" needs the package: pip install tokamax ({error})'
    ) from None
  limits = {}
  valid = jnp.ones(k.shape[:2], bool)
  if mask is not None:
    start, end, valid = mask.ranges(window)
    index = jnp.arange(q.shape[1], dtype=jnp.int32)[None]
    # How far to the left and right a query attends: tokamax only adds and
    # subtracts them, so an array [B, 1, T] will do in place of an int.
    limits["local_window_size"] = (
      pad_axis(index - start, 1, _TILE)[:, None],
      pad_axis(end - 1 - index, 1, _TILE)[:, None],
    )
  out = library.dot_product_attention(
    *(pad_axis(x, 1, _TILE) for x in (q, k, v)),
    mask=pad_axis(valid, 1, _TILE)[:, None, None, :],
    scale=scale,
    logits_soft_cap=logits_softcap or None,
    implementation="mosaic",
    **limits,
  )
  return out[:, : q.shape[1]]
