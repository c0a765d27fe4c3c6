"""The kernels of "flash": which devices have one, and whether it works there.

A kernel is compiled by what the machine has installed, for a chip that it may
never have run on. So before its first use a process tries it: forward and
backward at a small shape, against the chunks that take its place where it
fails. That is once for every kind of device and of heads.
"""

import functools
from collections.abc import Callable
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, Int

from paligemma import messages
from paligemma.models import device as device_lib
from paligemma.models.attention import chunked, flash, flash_gpu
from paligemma.models.attention.masks import make_mask

# By platform, with the dtypes that they take.
_KERNELS = {
  "tpu": (flash, ("float32", "bfloat16")),
  "gpu": (flash_gpu, ("bfloat16", "float16")),
}

# How far a kernel may be from chunks in float32, relative to the largest value
# of a result. Interpreted on a CPU they are 0.007 apart at most, in bfloat16.
TOLERANCE = 0.03

_LENGTH, _TEXT = 131, 120  # several tiles, and padding
_WINDOW, _CAP = 29, 2.5


def kernel() -> Callable[..., Array]:
  """Returns the kernel of the device, a function as reference.attend.

  The device has one: `refuse` returns None.
  """
  device = device_lib.current()
  found, _ = _KERNELS[device.platform]
  if device.platform != "gpu":
    return found.attend
  return functools.partial(found.attend, device_kind=device.device_kind)


def refuse(q: Float[Array, "B T N H"]) -> str | None:
  """Returns why no kernel is made for what is asked, or None."""
  device = device_lib.current()
  if device.platform not in _KERNELS:
    return f"runs on a TPU or a GPU, found {device.platform.upper()}"
  if device.platform == "gpu" and not device_lib.takes_triton():
    return f"needs an NVIDIA GPU since Ampere, found {device.device_kind}"
  _, dtypes = _KERNELS[device.platform]
  if q.dtype.name not in dtypes:
    return f"takes {' or '.join(dtypes)} there, found {q.dtype}"
  mesh = jax.sharding.get_abstract_mesh()
  if "model" not in mesh.manual_axes and mesh.shape.get("model", 1) > 1:
    return (
      'does not split heads, and the mesh axis "model" has '
      f"{mesh.shape['model']} devices"
    )
  return None


def find_problem(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B S K H"],
  window: int | Int[Array, ""] | None,
  logits_softcap: float | None,
) -> str | None:
  """Returns why the kernel cannot be trusted on the device, None if it can.

  It is not tried where there is no such device, as in plans for another
  machine. All processes of a mesh find a problem if one of them does.
  """
  device = device_lib.local()
  if device is None:
    return None
  is_of_all = jax.sharding.get_abstract_mesh().size == jax.device_count()
  return _try(
    device_lib.current(),
    device,
    (q.shape[2], *k.shape[2:]),
    q.dtype.name,
    window is not None,
    bool(logits_softcap),
    is_of_all and jax.process_count() > 1,
  )


@functools.cache
def _try(described, device, sizes, dtype, is_windowed, is_capped, agrees):
  attend, (heads, _, head_dim) = kernel(), sizes
  where = f"{described.device_kind} with {heads} heads of {head_dim} in {dtype}"

  def find():
    problem = None
    try:
      apart = _distance(attend, device, sizes, dtype, is_windowed, is_capped)
      if not apart <= TOLERANCE:  # nor if it is NaN
        problem = (
          f"computes wrongly on {where}: {apart:.2g} of the largest value "
          f"away from chunks, expected at most {TOLERANCE}"
        )
    except Exception as error:  # of any compiler or driver
      name, shown = type(error).__name__, messages.shown(str(error))
      problem = f"does not run on {where}: {name}: {shown}"
    if agrees:
      found = multihost_utils.process_allgather(np.array(problem is not None))
      if problem is None and found.any():
        problem = f"does not run in process {np.argmax(found)}"
    return problem

  # A thread of its own is neither within a trace nor within a mesh.
  with futures.ThreadPoolExecutor(1) as pool:
    return pool.submit(find).result()


def _distance(attend, device, sizes, dtype, is_windowed, is_capped):
  """Returns the largest relative difference of results and gradients."""
  heads, kv_heads, head_dim = sizes
  rng = np.random.default_rng(0)
  arrays = [
    rng.standard_normal((1, _LENGTH, n, head_dim)).astype(jnp.dtype(dtype))
    for n in (heads, kv_heads, kv_heads, heads)
  ]
  # Two texts, the first with a prefix, and padding.
  token = np.arange(_LENGTH)[None]
  mask_ar, text = (token >= 41).astype(np.int32), token // 71
  settings = {
    "window": _WINDOW if is_windowed else None,
    "scale": head_dim**-0.5,
    "logits_softcap": _CAP if is_capped else None,
  }

  @functools.partial(jax.jit, static_argnums=0)
  def run(attend, q, k, v, weights):
    mask = make_mask(token < _TEXT, mask_ar, text)

    def total(q, k, v):
      out = attend(q, k, v, mask, **settings)[:, :_TEXT].astype(jnp.float32)
      return jnp.sum(out * weights[:, :_TEXT].astype(jnp.float32)), out

    return jax.grad(total, argnums=(0, 1, 2), has_aux=True)(q, k, v)

  arrays = jax.device_put(arrays, device)
  exact = [x.astype(jnp.float32) for x in arrays]
  chunks = functools.partial(chunked.attend, num_chunks=1)
  pairs = zip(
    jax.tree.leaves(run(attend, *arrays)),
    jax.tree.leaves(run(chunks, *exact)),
    strict=True,
  )
  apart = [
    jnp.abs(x.astype(jnp.float32) - y).max() / jnp.abs(y).max()
    for x, y in pairs
  ]
  return float(jnp.max(jnp.stack(apart)))  # NaN if one is
