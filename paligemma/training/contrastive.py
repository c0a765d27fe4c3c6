"""Losses over all pairs of images and texts of a batch, always in float32.

A device holds the logits of its images and of the texts of one device at a
time; the texts go round the devices of mesh axis "data" with ppermute, together
with their gradients, and come home. So memory grows with the examples of a
device, not with those of the batch:

    device      0          1          2
    first     0 x 0      1 x 1      2 x 2      images x texts
    second    0 x 2      1 x 0      2 x 1
    third     0 x 1      1 x 2      2 x 0

Sources: arXiv:2303.15343, section 3.3 (SigLIP, the sigmoid loss in chunks);
arXiv:2103.00020, figure 3 (CLIP, the softmax loss). Both are sums over images
here; the caller divides by their number.

Axes: B batch, E features of an embedding, T tokens, b images of a device, c
texts of a device.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from paligemma.models import microbatch

_ROUNDING = 1e-4  # of logits; equal texts have equal ones but for that

Total = tuple[Float[Array, ""], Float[Array, ""]]


def sigmoid(
  zimg: Float[Array, "B E"],
  ztxt: Float[Array, "B E"],
  t: Float[Array, ""],
  b: Float[Array, ""],
  is_real: Bool[Array, " B"],
) -> Total:
  """Every pair by itself: does this image belong to this text?

      sum over i, j of -log_sigmoid(z * (zimg[i] @ ztxt[j] * t + b))

  z is 1 where i = j, and -1 elsewhere.

  Args:
    zimg, ztxt: Embeddings of norm 1; text i is that of image i.
    t: Factor of the logits, not its logarithm.
    b: What is added to them.
    is_real: False for examples that are neither images nor texts of the batch.

  Returns:
    The loss; and the number of images whose logit with their own text is as
    large as with any other, of which there is no gradient.
  """
  return _summed("sigmoid", zimg, ztxt, t, b, is_real)


def softmax(
  zimg: Float[Array, "B E"],
  ztxt: Float[Array, "B E"],
  t: Float[Array, ""],
  b: Float[Array, ""],
  is_real: Bool[Array, " B"],
) -> Total:
  """Which text belongs to the image, and which image to the text?

  The mean of both cross entropies; b has no influence. Arguments and returns
  are those of `sigmoid`.
  """
  return _summed("softmax", zimg, ztxt, t, b, is_real)


LOSSES = {"sigmoid": sigmoid, "softmax": softmax}


def count_equal(
  text: Int[Array, "B T"], is_real: Bool[Array, " B"]
) -> Float[Array, ""]:
  """Returns how many texts are those of an example before them.

  They are compared by 64 bits of a hash.
  """
  factors = np.random.default_rng(0).integers(2**32, size=(2, text.shape[1]))
  factors = jnp.asarray(factors, jnp.uint32)
  first, second = jnp.sum(
    text.astype(jnp.uint32)[None] * factors[:, None], axis=2
  )
  order = jnp.lexsort((first, second, ~is_real))
  first, second, is_real = (x[order] for x in (first, second, is_real))
  is_equal = (first[1:] == first[:-1]) & (second[1:] == second[:-1])
  return jnp.sum(is_equal & is_real[1:], dtype=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed(kind, *arguments):
  return _with_gradients(kind, *arguments)[0]


def _forward(kind, *arguments):
  return _with_gradients(kind, *arguments)


def _backward(kind, gradients, cotangents):
  of_loss, _ = cotangents
  return *(of_loss * x for x in gradients), None


_summed.defvjp(_forward, _backward)


def _with_gradients(kind, zimg, ztxt, t, b, is_real):
  """Returns (loss, number correct), and the gradients of all but is_real."""
  batch = zimg.shape[0]
  devices = batch // microbatch.local_batch(batch)
  on_device = functools.partial(_KINDS[kind], devices)
  if devices == 1:
    return on_device(zimg, ztxt, t, b, is_real)
  split, whole = PartitionSpec("data"), PartitionSpec()

  def run(*arguments):
    sums, (dzimg, dztxt, dt, db) = on_device(*arguments)
    sums, dt, db = jax.lax.psum((sums, dt, db), "data")
    return sums, (dzimg, dztxt, dt, db)

  return jax.shard_map(
    run,
    in_specs=(split, split, whole, whole, split),
    out_specs=((whole, whole), (split, split, whole, whole)),
    axis_names={"data"},
    check_vma=False,
  )(zimg, ztxt, t, b, is_real)


def _round(devices, step, own, texts):
  """Lets the texts go round once.

  Args:
    step: Of (whether the texts are those of the device, own, texts), returns
      the new own and texts.
    own: What stays on the device.
    texts: What goes with the texts, a tree of [c, ...].
  """
  if devices == 1:
    return step(jnp.bool_(True), own, texts)
  to_next = [(i, (i + 1) % devices) for i in range(devices)]

  def hop(i, state):
    own, texts = step(i == 0, *state)
    return own, jax.lax.ppermute(texts, "data", to_next)

  return jax.lax.fori_loop(0, devices, hop, (own, texts))


def _logits(zimg, ztxt, t, b):
  zimg, ztxt = (z.astype(jnp.float32) for z in (zimg, ztxt))
  return zimg @ ztxt.T * t + b


def _pairs(is_home, is_real, texts_real):
  """Which pairs belong together, and which count; both bool[b, c]."""
  belongs = jnp.eye(len(is_real), dtype=bool) & is_home
  return belongs, is_real[:, None] & texts_real[None, :]


def _ranked(logits, belongs, counts, own):
  """Notes the logit of the image's own text, and the largest of all."""
  largest = jnp.where(counts, logits, -jnp.inf).max(axis=1)
  paired = jnp.where(belongs, logits, 0).sum(axis=1)
  return {
    "largest": jnp.maximum(own["largest"], largest),
    "paired": own["paired"] + paired,
  }


def _start(zimg):
  nothing = jnp.full(len(zimg), -jnp.inf)
  return {"largest": nothing, "paired": jnp.zeros(len(zimg))}


def _num_correct(own, is_real):
  is_correct = own["paired"] >= own["largest"] - _ROUNDING
  return jnp.sum(is_real & is_correct, dtype=jnp.float32)


def _sigmoid_on_device(devices, zimg, ztxt, t, b, is_real):
  def step(is_home, own, texts):
    belongs, counts = _pairs(is_home, is_real, texts["is_real"])
    logits, back = jax.vjp(_logits, zimg, texts["z"], t, b)
    losses = -jax.nn.log_sigmoid(jnp.where(belongs, logits, -logits))
    grads = back(jnp.where(counts, jax.nn.sigmoid(logits) - belongs, 0))
    of_image, of_text, *of_logits = grads
    own = {
      **_ranked(logits, belongs, counts, own),
      "loss": own["loss"] + jnp.where(counts, losses, 0).sum(),
      "grads": jax.tree.map(jnp.add, own["grads"], [of_image, *of_logits]),
    }
    return own, {**texts, "grad": texts["grad"] + of_text}

  zeros = jax.tree.map(jnp.zeros_like, [zimg, t, b])
  own = {**_start(zimg), "loss": jnp.zeros(()), "grads": zeros}
  texts = {"z": ztxt, "is_real": is_real, "grad": jnp.zeros_like(ztxt)}
  own, texts = _round(devices, step, own, texts)
  of_image, of_t, of_b = own["grads"]
  sums = own["loss"], _num_correct(own, is_real)
  return sums, (of_image, texts["grad"], of_t, of_b)


def _softmax_on_device(devices, zimg, ztxt, t, b, is_real):
  def normalize(is_home, own, texts):
    belongs, counts = _pairs(is_home, is_real, texts["is_real"])
    logits = _logits(zimg, texts["z"], t, b)
    own_norm, norm = (
      jnp.logaddexp(
        before,
        jax.nn.logsumexp(jnp.where(counts, logits, -jnp.inf), axis=axis),
      )
      for axis, before in ((1, own["norm"]), (0, texts["norm"]))
    )
    own = {**_ranked(logits, belongs, counts, own), "norm": own_norm}
    return own, {**texts, "norm": norm}

  def differentiate(is_home, own, texts):
    belongs, counts = _pairs(is_home, is_real, texts["is_real"])
    logits, back = jax.vjp(_logits, zimg, texts["z"], t, b)
    of_rows = jnp.exp(logits - norm[:, None])
    of_columns = jnp.exp(logits - texts["norm"][None, :])
    wanted = (of_rows + of_columns) / 2 - belongs
    of_image, of_text, *of_logits = back(jnp.where(counts, wanted, 0))
    own = jax.tree.map(jnp.add, own, [of_image, *of_logits])
    return own, {**texts, "grad": texts["grad"] + of_text}

  nothing = jnp.full(len(zimg), -jnp.inf)
  own = {**_start(zimg), "norm": nothing}
  texts = {"z": ztxt, "is_real": is_real, "norm": nothing}
  own, texts = _round(devices, normalize, own, texts)
  norm = own["norm"]
  losses = (norm + texts["norm"]) / 2 - own["paired"]
  sums = jnp.where(is_real, losses, 0).sum(), _num_correct(own, is_real)
  zeros = jax.tree.map(jnp.zeros_like, [zimg, t, b])
  texts = {**texts, "grad": jnp.zeros_like(ztxt)}
  (of_image, of_t, of_b), texts = _round(devices, differentiate, zeros, texts)
  return sums, (of_image, texts["grad"], of_t, of_b)


_KINDS = {"sigmoid": _sigmoid_on_device, "softmax": _softmax_on_device}
