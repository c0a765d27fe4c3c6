"""Attention from masks to weighted values, shared by both towers.

Axes: B batch, T query position, S key position, N query heads, K key/value
heads, G query heads per key/value head (N = K * G), H head dim.
"""

import functools
import logging

import einops
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from paligemma import registry
from paligemma.models import device as device_lib
from paligemma.models.attention import chunked, kernels
from paligemma.models.attention.masks import Mask
from paligemma.models.linear import einsum_float32, keep
from paligemma.models.microbatch import local_batch

_log = logging.getLogger(__name__)

IMPLEMENTATIONS = ("auto", "reference", "chunked", "flash")

# Large enough to vanish in a float32 softmax, finite so that a query without
# any key (padding) yields a plain average instead of NaN.
MASKED_LOGIT = -2.3819763e38

# Logits that one device holds at once, 128 MiB in float32; on CPUs as many as
# stay in the cache, 8 MiB: forward and backward pass of 4160 tokens and 8 heads
# then take 0.7 s, and 1.3 s in chunks of 2**25.
_LOGITS_AT_ONCE = 2**25
_LOGITS_IN_CACHE = 2**21


def apply_rope(
  x: Float[Array, "B T N H"],
  positions: Int[Array, "B T"],
  *,
  max_wavelength: int = 10_000,
) -> Float[Array, "B T N H"]:
  """Rotates each head by its position (RoPE, arXiv:2104.09864).

  The head dim, which is even, is split into two halves, and element i of the
  first rotates with element i of the second (GPT-NeoX layout, as in Gemma), not
  with its neighbour. Angles and rotation are float32: bfloat16 cannot even
  represent the integer positions above 256. The result has the dtype of `x`;
  `max_wavelength` is the slowest rotation, in tokens per radian.
  """
  half = x.shape[-1] // 2
  exponent = jnp.arange(half, dtype=jnp.float32) / half
  angle = positions[:, :, None, None].astype(jnp.float32) / (
    jnp.float32(max_wavelength) ** exponent[None, None, None, :]
  )
  sin, cos = jnp.sin(angle), jnp.cos(angle)
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )
  return rotated.astype(x.dtype)


def soft_cap(
  logits: Float[Array, "..."], cap: float | None
) -> Float[Array, "..."]:
  """Squashes logits smoothly into (-cap, cap); None or 0 changes nothing.

  Source: Gemma 2 report (arXiv:2408.00118), section 2.
  """
  return cap * jnp.tanh(logits / cap) if cap else logits


def attend(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B S K H"],
  v: Float[Array, "B S K H"],
  mask: Mask | None = None,
  *,
  scale: float,
  logits_softcap: float | None = None,
  window: int | Int[Array, ""] | None = None,
  implementation: str = "auto",
  num_chunks: int | None = None,
) -> Float[Array, "B T N H"]:
  """Scaled dot-product attention with grouped queries.

  Logits and softmax are float32 whatever the inputs are; the weights return
  to the dtype of `v` before they are multiplied with it. All implementations
  agree, except that the result for a query without any key is some finite
  number:

      reference  plain, for short sequences: its logits are B x N x T x S
      chunked    a chunk of the queries at a time, on any device
      flash      tile by tile within the cores of a TPU, for float32 and
                 bfloat16, or of an NVIDIA GPU since Ampere, for 16 bits

  "auto" is the reference while the logits of a device are at most 2**25, on
  CPUs 2**21. Beyond, it is flash where there is one, unless there are fewer
  than 128 queries, heads are split over the mesh axis "model", or there are
  several devices and no mesh of jax.set_mesh says what they hold; else chunked.
  Where a kernel, tried once in a process, does not run or computes wrongly, a
  line says so and chunked is used.
  A single query, as in decoding, takes the reference whatever is asked for.
  What remat_policy "products" keeps is marked here.

  Args:
    q, k, v: Queries, not yet scaled, keys and values; K divides N.
    mask: None: every query attends to every key.
    scale: What the queries are multiplied by.
    logits_softcap: Bound on the logits before the mask.
    window: See Mask.dense.
    implementation: "auto" or a name above.
    num_chunks: Of "chunked"; default as few as keep the logits of a device
      below 2**25, on CPUs below 2**21.

  Raises:
    ValueError: An unknown implementation, or one that cannot do this here, or
      not rightly.
  """
  registry.lookup(dict.fromkeys(IMPLEMENTATIONS), implementation, "attention")
  if q.shape[1] == 1:
    implementation = "reference"
  elif implementation == "auto":
    implementation = _choose(q, k, window, logits_softcap)
  elif implementation == "flash":
    problem = kernels.refuse(q)
    problem = problem or kernels.find_problem(q, k, window, logits_softcap)
    if problem:
      raise ValueError(f'attention "flash" {problem}; use "auto" or "chunked"')
  settings = {"scale": scale, "logits_softcap": logits_softcap}
  if implementation == "reference":
    seen = None if mask is None else mask.dense(window)
    return keep(_attend(q, k, v, seen, **settings))
  if implementation == "chunked":
    num_chunks = num_chunks or _count_chunks(q, k)
    return chunked.attend(q, k, v, mask, window, num_chunks, **settings)

  def on_device(arrays, window):
    q, k, v, mask = arrays
    if mask is None:  # every query attends to every key
      query, key = (jnp.zeros(x.shape[:2], jnp.int32) for x in (q, k))
      mask = Mask(query, key, query, key)
    return kernels.kernel()(q, k, v, mask, window, **settings)

  return _on_each_device(on_device, (q, k, v, mask), window)


def _choose(q, k, window, logits_softcap):
  """Returns the implementation that "auto" stands for."""
  if _count_chunks(q, k) == 1:
    return "reference"
  mesh = jax.sharding.get_abstract_mesh()
  split_is_known = jax.device_count() == 1 or not mesh.empty
  if q.shape[1] < 128 or not split_is_known or kernels.refuse(q):
    return "chunked"
  if problem := kernels.find_problem(q, k, window, logits_softcap):
    _say_what_is_used(problem)
    return "chunked"
  return "flash"


@functools.cache
def _say_what_is_used(problem):
  _log.warning('attention "flash" %s; "chunked" is used', problem)


def _count_chunks(q, k):
  """Returns how many chunks of queries keep the logits of a device small."""
  batch, length, heads, _ = q.shape
  logits = local_batch(batch) * heads * length * k.shape[1]
  is_cpu = device_lib.current().platform == "cpu"
  at_once = _LOGITS_IN_CACHE if is_cpu else _LOGITS_AT_ONCE
  return -(-logits // at_once)


def _on_each_device(function, arrays, window):
  """Applies a function to each device's examples: XLA cannot split kernels."""
  mesh = jax.sharding.get_abstract_mesh()
  axes = set(mesh.axis_names) - set(mesh.manual_axes)
  if not axes:
    return function(arrays, window)
  batch = arrays[0].shape[0]
  split = PartitionSpec("data" if local_batch(batch) < batch else None)
  return jax.shard_map(
    function,
    in_specs=(split, PartitionSpec()),
    out_specs=split,
    axis_names=axes,
    check_vma=False,
  )(arrays, window)


def _attend(q, k, v, seen, *, scale, logits_softcap):
  # In this order the products need no transposition.
  q = einops.rearrange(q, "B T (K G) H -> B K G T H", K=k.shape[2])
  k, v = (einops.rearrange(x, "B S K H -> B K S H") for x in (k, v))
  logits = einsum_float32("BKGTH,BKSH->BKGTS", q, k)
  logits = soft_cap(logits * scale, logits_softcap)
  if seen is not None:
    logits = jnp.where(seen[:, None, None, :, :], logits, MASKED_LOGIT)
  weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
  mixed = einsum_float32("BKGTS,BKSH->BKGTH", weights, v).astype(v.dtype)
  return einops.rearrange(mixed, "B K G T H -> B T (K G) H")
