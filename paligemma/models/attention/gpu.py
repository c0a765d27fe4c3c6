"""Attention by kernels of others, for NVIDIA GPUs.

Both were lowered for CUDA, forward and backward, on a machine without a GPU:
they take what they are given here, and no array of T x S arises. They have not
been run on a GPU, which is why nothing chooses them by itself.

Axes: B batch, T query position, S key position, N query heads, K key/value
heads, H head dim.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from paligemma.models.attention.masks import Mask

_TILE = 128


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
  """Attention by tokamax's kernel for Hopper and Blackwell GPUs.

  It takes a range of keys for each query. Its Triton kernel, for older GPUs,
  would write the mask out in the backward pass and knows no soft cap there; its
  kernel for TPUs knows no ranges (all of 0.0.12). It reads absl's flags, from
  sys.argv if the program has not parsed them: absl.flags.FLAGS([""]) does.

  Args:
    q: float[B, T, N, H] queries, not yet scaled; bfloat16 or float16.
    k, v: float[B, S, K, H] keys and values; K divides N.
    mask: Mask of attention.make_mask, and so T = S; or None.
    window: see attention.Mask.dense.
    scale: float, what the queries are multiplied by.
    logits_softcap: float or None.

  Returns:
    float[B, T, N, H] in the dtype of `v`.

  Raises:
    ValueError: tokamax is not installed, or not for this GPU or these arrays.
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
    place = jnp.arange(q.shape[1], dtype=jnp.int32)[None]
    # How far to the left and right of its place a query sees: tokamax adds and
    # subtracts, so that an array [B, 1, T] does as well as an int.
    limits["local_window_size"] = (
      _pad(place - start)[:, None],
      _pad(end - 1 - place)[:, None],
    )
  try:
    out = library.dot_product_attention(
      *map(_pad, (q, k, v)),
      mask=_pad(valid)[:, None, None, :],
      scale=scale,
      logits_soft_cap=logits_softcap or None,
      implementation="mosaic",
      **limits,
    )
    return out[:, : q.shape[1]]
  except NotImplementedError as error:
    raise ValueError(
      f'attention "tokamax" cannot do this: {error}; use "auto"'
    ) from None


def _pad(x):
  """Fills the tiles of tokamax's kernel, which does not."""
  room = [(0, 0), (0, -x.shape[1] % _TILE)] + [(0, 0)] * (x.ndim - 2)
  return jnp.pad(x, room)


def cudnn(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B S K H"],
  v: Float[Array, "B S K H"],
  *,
  scale: float,
) -> Float[Array, "B T N H"]:
  """Attention by cuDNN, through JAX, for what sees everything.

  cuDNN takes a length for each row, or a bias of T x S, neither of which is the
  mask of a prefix; and no soft cap.

  Args:
    q: float[B, T, N, H] queries, not yet scaled; bfloat16 or float16.
    k, v: float[B, S, K, H] keys and values; K divides N.
    scale: float, what the queries are multiplied by.

  Returns:
    float[B, T, N, H] in the dtype of `v`.

  Raises:
    ValueError: cuDNN is missing, or not for these arrays.
  """
  try:
    return jax.nn.dot_product_attention(
      q, k, v, scale=scale, implementation="cudnn"
    )
  except (NotImplementedError, RuntimeError) as error:
    raise ValueError(
      f'attention "cudnn" cannot do this: {error}; use "auto"'
    ) from None
