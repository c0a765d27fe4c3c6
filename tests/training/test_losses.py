import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from paligemma.training import losses
from tests import typecheck

B, T, V = 3, 5, 11


@pytest.fixture
def example():
  rng = np.random.default_rng(0)
  logits = rng.normal(scale=3, size=(B, T, V)).astype(np.float32)
  targets = rng.integers(V, size=(B, T)).astype(np.int32)
  mask = np.array([[0, 1, 1, 1, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]], np.int32)
  return jnp.asarray(logits), jnp.asarray(targets), jnp.asarray(mask)


def reference_token_losses(logits, targets, smoothing):
  """The definition itself, in float64: -sum of smoothed targets * log p."""
  logits = np.asarray(logits).astype(np.float64)
  log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
  wanted = np.full(logits.shape, smoothing / (logits.shape[-1] - 1))
  np.put_along_axis(
    wanted, np.asarray(targets)[..., None], 1 - smoothing, axis=-1
  )
  return -(wanted * log_p).sum(axis=-1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_next_token_is_its_definition(example, smoothing):
  logits, targets, mask = example
  per_token = reference_token_losses(logits, targets, smoothing)
  expected = [per_token[0, 1:4].mean(), per_token[1, 3], 0.0]
  actual = losses.next_token(logits, targets, mask, label_smoothing=smoothing)
  assert actual.dtype == jnp.float32
  np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_next_token_agrees_with_optax(example):
  logits, targets, mask = example
  per_token = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
  mean = losses.next_token(logits, targets, mask)
  total = mean * jnp.array([3, 1, 1])
  np.testing.assert_allclose(total, (per_token * mask).sum(axis=1), rtol=1e-6)


def test_gradient_is_softmax_minus_smoothed_target(example):
  logits, targets, mask = example
  grad = jax.grad(
    lambda x: losses.next_token(x, targets, mask, label_smoothing=0.2).sum()
  )(logits)
  onehot = jax.nn.one_hot(targets, V)
  wanted = 0.8 * onehot + 0.2 / (V - 1) * (1 - onehot)
  weight = mask / jnp.array([3, 1, 1])[:, None]
  expected = (jax.nn.softmax(logits) - wanted) * weight[..., None]
  np.testing.assert_allclose(grad, expected, atol=1e-6)


def test_uniform_logits_cost_log_vocabulary(example):
  _, targets, mask = example
  loss = losses.next_token(
    jnp.zeros((B, T, V)), targets, mask, label_smoothing=0.3
  )
  np.testing.assert_allclose(loss, np.log(V) * np.array([1, 1, 0]), rtol=1e-6)


def test_padding_changes_nothing(example):
  logits, targets, mask = example
  pad = 7
  padded = losses.next_token(
    jnp.pad(logits, ((0, 0), (0, pad), (0, 0)), constant_values=9.0),
    jnp.pad(targets, ((0, 0), (0, pad))),
    jnp.pad(mask, ((0, 0), (0, pad))),
  )
  unpadded = losses.next_token(logits, targets, mask)
  np.testing.assert_allclose(padded, unpadded, rtol=1e-6)


def test_unsupervised_tokens_change_nothing(example):
  logits, targets, mask = example
  expected = losses.next_token(logits, targets, mask)
  other = jnp.where(mask == 1, targets, (targets + 1) % V)
  actual = losses.next_token(logits, other, mask)
  np.testing.assert_array_equal(actual, expected)


def test_bfloat16_logits_are_summed_in_float32(example):
  logits, targets, mask = example
  low = logits.astype(jnp.bfloat16)
  actual = losses.next_token(low, targets, mask, label_smoothing=0.1)
  expected = losses.next_token(
    low.astype(jnp.float32), targets, mask, label_smoothing=0.1
  )
  assert actual.dtype == jnp.float32
  np.testing.assert_array_equal(actual, expected)


def test_large_logits_stay_finite(example):
  logits, targets, mask = example
  expected = losses.next_token(logits, targets, mask, label_smoothing=0.1)
  # 1024 and logits of 2**-10 steps: the shift itself is exact in float32.
  grid = jnp.round(logits * 1024) / 1024
  shifted = losses.next_token(grid + 1024.0, targets, mask, label_smoothing=0.1)
  assert np.isfinite(shifted).all()
  np.testing.assert_allclose(shifted, expected, atol=2e-3)
  np.testing.assert_allclose(
    shifted,
    losses.next_token(grid, targets, mask, label_smoothing=0.1),
    rtol=1e-6,
  )


@typecheck.off()
def test_messages(example):
  logits, targets, mask = example
  with pytest.raises(ValueError, match="missing mask: mask_loss is None"):
    losses.next_token(logits, targets, None)
  with pytest.raises(ValueError, match="missing mask"):
    losses.supervised_sums(compute_logits, {}, logits, targets, None)
  with pytest.raises(ValueError, match=r"mask_loss has shape \(3, 4\), expe"):
    losses.next_token(logits, targets, mask[:, 1:])
  with pytest.raises(ValueError, match=r"targets has shape .*last axis"):
    losses.supervised_sums(compute_logits, {}, logits, targets[:, 1:], mask)
  with pytest.raises(ValueError, match=r"label_smoothing is 1\.0, expected"):
    losses.next_token(logits, targets, mask, label_smoothing=1.0)


def compute_logits(head, features):
  """The output layer of a decoder, with a soft cap."""
  return 5 * jnp.tanh(features @ head["table"] / 5)


@pytest.fixture
def features():
  rng = np.random.default_rng(1)
  head = {"table": rng.normal(scale=2, size=(7, V)).astype(np.float32)}
  return head, rng.normal(size=(B, T, 7)).astype(np.float32)


@pytest.mark.parametrize("at_once", [2**25, 2 * V * B, 1])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_few_logits_at_a_time_change_nothing(
  example, features, smoothing, at_once, monkeypatch
):
  monkeypatch.setattr(losses, "LOGITS_AT_ONCE", at_once)
  _, targets, mask = example
  mask = mask.at[2, 0].set(1)
  weights = jnp.array([0.5, 0.0, 2.0])

  def plain(head, x):
    logits = compute_logits(head, x)
    each = losses.next_token(logits, targets, mask, label_smoothing=smoothing)
    return (each * weights).sum()

  def few(head, x):
    return losses.mean_next_token(
      compute_logits,
      head,
      x,
      targets,
      mask,
      weights,
      label_smoothing=smoothing,
    )

  for arguments in (0, 1, (0, 1)):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
      jax.jit(jax.value_and_grad(few, arguments))(*features),
      jax.value_and_grad(plain, arguments)(*features),
    )
  np.testing.assert_allclose(few(*features), plain(*features), rtol=1e-6)


@pytest.mark.parametrize("at_once", [2**25, 2 * V * B, 1])
def test_sums_of_few_logits_at_a_time(example, features, at_once, monkeypatch):
  monkeypatch.setattr(losses, "LOGITS_AT_ONCE", at_once)
  _, targets, mask = example
  found = losses.supervised_sums(compute_logits, *features, targets, mask)
  logits = compute_logits(*features)
  per_token = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
  expected = (per_token * mask).sum(axis=1)
  np.testing.assert_allclose(found[0], expected, rtol=1e-6)
  np.testing.assert_array_equal(found[1], [3, 1, 0])


def test_without_supervised_tokens_there_is_no_loss(example, features):
  _, targets, mask = example

  def few(head, x):
    zeros = jnp.zeros_like(mask)
    ones = jnp.ones(B)
    return losses.mean_next_token(compute_logits, head, x, targets, zeros, ones)

  value, grads = jax.value_and_grad(few, (0, 1))(*features)
  assert value == 0
  assert not any(np.any(g) for g in jax.tree.leaves(grads))


def test_no_array_of_all_logits(monkeypatch):
  monkeypatch.setattr(losses, "LOGITS_AT_ONCE", 2 * 3 * 101)
  head = {"table": jnp.ones((7, 101))}
  shape = (3, 17)

  def few(x, targets, mask):
    return losses.mean_next_token(
      compute_logits, head, x, targets, mask, jnp.ones(3)
    )

  jaxpr = jax.make_jaxpr(jax.grad(few))(
    jnp.ones((*shape, 7)), jnp.ones(shape, jnp.int32), jnp.ones(shape)
  )
  assert "f32[3,2,101]" in str(jaxpr)
  assert "f32[3,17,101]" not in str(jaxpr)
