"""Losses over pairs: their definition, over several devices, with padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma.training import contrastive, sharding

B, E = 24, 7


def plain_sigmoid(zimg, ztxt, t, b):
  """The definition, as in big_vision's trainers/proj/image_text/siglip.py."""
  logits = jnp.dot(zimg, ztxt.T) * t + b
  signs = 2 * jnp.eye(len(zimg)) - 1
  return -jax.nn.log_sigmoid(signs * logits).sum()


def plain_softmax(zimg, ztxt, t, b):
  logits = jnp.dot(zimg, ztxt.T) * t + b
  rows, columns = (
    jnp.diag(jax.nn.log_softmax(logits, axis=axis)).sum() for axis in (0, 1)
  )
  return -(rows + columns) / 2


PLAIN = {"sigmoid": plain_sigmoid, "softmax": plain_softmax}


@pytest.fixture
def embeddings():
  rng = np.random.default_rng(0)
  zimg, ztxt = rng.normal(size=(2, B, E)).astype(np.float32)
  ztxt += zimg
  zimg, ztxt = (
    z / np.linalg.norm(z, axis=1, keepdims=True) for z in (zimg, ztxt)
  )
  return zimg, ztxt, np.float32(11.3), np.float32(-2.71)


@pytest.fixture
def is_real():
  """Seven of the examples count for nothing, two of them at the end."""
  mask = np.ones(B, bool)
  mask[[0, 5, 6, 7, 13, 22, 23]] = False
  return mask


def value_and_grad(kind, arguments, is_real, devices):
  """What contrastive.LOSSES says on so many devices: loss, correct, grads."""
  mesh = sharding.make_mesh(devices=jax.devices()[:devices])

  def loss(*arguments):
    total, correct = contrastive.LOSSES[kind](*arguments, is_real)
    return total / is_real.sum(), correct

  with jax.set_mesh(mesh):
    return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))(
      *arguments
    )


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("kind", contrastive.LOSSES)
def test_it_is_the_plain_loss_of_the_real_examples(
  kind, devices, embeddings, is_real
):
  zimg, ztxt, *logit = embeddings
  real = zimg[is_real], ztxt[is_real], *logit
  expected, grads = jax.value_and_grad(
    lambda *arguments: PLAIN[kind](*arguments) / len(real[0]), (0, 1, 2, 3)
  )(*real)
  is_real = jnp.asarray(is_real)
  (found, correct), found_grads = value_and_grad(
    kind, jax.tree.map(jnp.asarray, embeddings), is_real, devices
  )
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  for z, wanted in zip(found_grads[:2], grads[:2], strict=True):
    np.testing.assert_allclose(z[is_real], wanted, atol=1e-6)
    assert not z[~is_real].any()
  for z, wanted in zip(found_grads[2:], grads[2:], strict=True):
    np.testing.assert_allclose(z, wanted, atol=1e-6)
  similar = real[0] @ real[1].T
  assert correct == (similar.argmax(axis=1) == np.arange(len(similar))).sum()
  assert 0 < correct < len(similar)


@pytest.mark.parametrize("kind", contrastive.LOSSES)
def test_no_device_holds_all_logits(kind):
  """Twice the batch on twice the devices needs no more memory of each."""
  batch, width = 256, 8
  needed = []
  for devices in (4, 8):
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    split, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    z, one, mask = (
      jax.ShapeDtypeStruct(shape, dtype, sharding=where)
      for shape, dtype, where in (
        ((batch * devices, width), jnp.float32, split),
        ((), jnp.float32, whole),
        ((batch * devices,), bool, split),
      )
    )

    def loss(*arguments):
      return contrastive.LOSSES[kind](*arguments)[0]

    with jax.set_mesh(mesh):
      step = jax.jit(jax.grad(loss, (0, 1, 2, 3)))
      compiled = step.lower(z, z, one, one, mask).compile()
    needed.append(compiled.memory_analysis().temp_size_in_bytes)
  assert needed[1] == pytest.approx(needed[0], rel=0.05)
  assert needed[1] < 8 * batch * batch * 4  # a few times the local logits


def test_the_softmax_of_far_apart_logits_is_finite(is_real):
  zimg = jnp.eye(B, E) - 0.5
  t, b = jnp.float32(500), jnp.zeros(())
  loss, _ = contrastive.softmax(zimg, -zimg, t, b, jnp.asarray(is_real))
  assert jnp.isfinite(loss) and loss > 100


def test_equal_texts_are_counted():
  text = jnp.array([[3, 4], [4, 3], [3, 4], [5, 1], [3, 4], [5, 1]])
  real = jnp.ones(6, bool)
  assert contrastive.count_equal(text, real) == 3
  assert contrastive.count_equal(text, real.at[4].set(False)) == 2
  assert contrastive.count_equal(text[:2], real[:2]) == 0
