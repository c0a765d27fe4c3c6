"""The decoder beside a SigLIP: what each token sees, and its numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma import tree
from paligemma.models import text_decoder, text_tower

B, T, S, C, VOCABULARY = 2, 5, 7, 6, 31
SIZES = {"width": 12, "depth": 4, "mlp_dim": 20, "num_heads": 2}
TOWER = text_tower.Model(VOCABULARY, T, **SIZES)
RNG = np.random.default_rng(0)
IMAGE = jnp.asarray(RNG.normal(size=(B, S, C)), jnp.float32)
TEXT = jnp.asarray(RNG.integers(0, VOCABULARY, (B, 3, T)), jnp.int32)
PARALLEL = jnp.array([True, False])


def make(**fields):
  """A decoder, and parameters drawn by NumPy, flat."""
  model = text_decoder.beside(TOWER, **fields)
  init = jax.eval_shape(
    lambda: model.init(jax.random.key(0), IMAGE, method="init_from")
  )
  rng = np.random.default_rng(1)
  return model, {
    name: rng.normal(0.3 * (len(x.shape) < 3), 0.4, x.shape).astype("f4")
    for name, x in tree.flatten(init["params"]).items()
  }


def run(model, params, image=IMAGE, text=TEXT, is_patch=None):
  """Logits [B, 3, T, V]."""
  variables = {"params": tree.unflatten(params)}
  features = model.apply(variables, image, is_patch, text, PARALLEL)
  logits = model.apply(variables, features, method="compute_logits")
  return np.asarray(logits).reshape(*text.shape, VOCABULARY)


def numpy_logits(params, image, text, parallel):
  """The definition, one text of one image at a time, in float64."""
  params = {name: np.asarray(x, np.float64) for name, x in params.items()}

  def norm(x, name, at=...):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1) + 1e-6)[:, None]
    return x * params[f"{name}/scale"][at] + params[f"{name}/bias"][at]

  def attend(x, keys, name, layer, seen):
    q, k, v = (
      np.einsum("td,dnh->tnh", y, params[f"{name}/{part}/kernel"][layer])
      + params[f"{name}/{part}/bias"][layer]
      for y, part in ((x, "query"), (keys, "key"), (keys, "value"))
    )
    logits = np.einsum("tnh,snh->nts", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(np.where(seen, logits, -np.inf))
    weights /= weights.sum(-1, keepdims=True)
    mixed = np.einsum("nts,snh->tnh", weights, v)
    out = np.einsum("tnh,nhd->td", mixed, params[f"{name}/out/kernel"][layer])
    return out + params[f"{name}/out/bias"][layer]

  def mlp(x, layer):
    up, down = (f"decoderblock/MlpBlock_0/Dense_{i}" for i in (0, 1))
    x = x @ params[f"{up}/kernel"][layer] + params[f"{up}/bias"][layer]
    x = x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2
    return x @ params[f"{down}/kernel"][layer] + params[f"{down}/bias"][layer]

  found = np.empty((*text.shape, VOCABULARY))
  for b, kind in np.ndindex(text.shape[:2]):
    tokens = params["tokens"][0]
    x = params["Embed_0/embedding"][text[b, kind]]
    x = np.concatenate([tokens[kind : kind + 1], x[:-1]])
    seen = np.tri(T, dtype=bool)
    if kind == 0 and parallel[b]:
      x, seen = np.tile(tokens[3:], (T, 1)), np.ones((T, T), bool)
    x = x + params["pos_embedding"][0]
    for layer in range(2):
      norms = [f"decoderblock/LayerNorm_{i}" for i in range(3)]
      mha = "decoderblock/MultiHeadDotProductAttention"
      y, every = norm(x, norms[0], layer), np.ones((T, len(image[b])), bool)
      x = x + attend(y, y, f"{mha}_0", layer, seen)
      y = norm(x, norms[1], layer)
      x = x + attend(y, image[b], f"{mha}_1", layer, every)
      x = x + mlp(norm(x, norms[2], layer), layer)
    x = norm(x, "decoder_norm")
    found[b, kind] = x @ params["head/kernel"] + params["head/bias"]
  return found


@pytest.mark.parametrize("remat_policy", ["none", "block_inputs"])
def test_logits_are_those_of_numpy(remat_policy):
  model, params = make(remat_policy=remat_policy)
  assert model.depth == 2  # half as many layers as the text tower
  expected = numpy_logits(params, *map(np.asarray, (IMAGE, TEXT, PARALLEL)))
  np.testing.assert_allclose(run(model, params), expected, rtol=0, atol=1e-5)


def test_the_image_has_the_gradient_that_autodiff_finds():
  def gradients(remat_policy):
    model, params = make(remat_policy=remat_policy)

    def loss(params, image):
      variables = {"params": tree.unflatten(params)}
      features = model.apply(variables, image, None, TEXT, PARALLEL)
      return jnp.sum(jnp.sin(features))

    return jax.jit(jax.grad(loss, (0, 1)))(params, IMAGE)

  (params, image), expected = map(gradients, ("block_inputs", "none"))
  assert np.abs(image).max() > 1e-2
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    (params, image),
    expected,
  )


def changed(model, params, place, **inputs):
  """Which logits change [B, 3, T] when the token at a place does."""
  text = TEXT.at[place].set((TEXT[place] + 7) % VOCABULARY)
  before, after = run(model, params), run(model, params, text=text)
  return (before != after).any(axis=3)


def test_a_parallel_caption_is_not_seen_and_another_only_by_what_follows():
  model, params = make()
  assert not changed(model, params, (0, 0, 2)).any()
  for kind in range(3):
    expected = np.zeros((B, 3, T), bool)
    expected[1, kind, 3:] = True
    found = changed(model, params, (1, kind, 2))
    np.testing.assert_array_equal(found, expected)


def test_padding_of_a_naflex_is_not_seen():
  model, params = make()
  is_patch = jnp.arange(S)[None] < jnp.array([[4], [7]])
  garbage = jnp.where(is_patch[:, :, None], IMAGE, 1e9)
  found = run(model, params, garbage, is_patch=is_patch)
  alone = run(model, params, IMAGE[:, :4])
  np.testing.assert_allclose(found[0], alone[0], rtol=0, atol=1e-5)
  whole = run(model, params)
  np.testing.assert_allclose(found[1], whole[1], rtol=0, atol=1e-5)


def test_an_unknown_field_is_one_line():
  with pytest.raises(ValueError, match=r'decoder field "widht".*"width"'):
    text_decoder.beside(TOWER, widht=3)
