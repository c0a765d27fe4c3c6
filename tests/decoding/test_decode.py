import functools
import math
import re
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from paligemma.decoding import decode, grammar, samplers
from paligemma.models import paligemma as paligemma_model
from paligemma.training import sharding
from tests import typecheck
from tests.decoding.grammar.words import Words

EOS, PAD = 1, 0
LENGTH = 7
VOCABULARY = 61
LENGTHS = [5, 3, 11, 2]  # tokens of each prompt, in a text of length 11


class Scripted(nn.Module):
  """A model whose n-th token is image[row, n, 0, 0], whatever the prompt."""

  on_step: Callable[[], None] = lambda: None
  img: str = "an image tower"

  def apply(self, variables, *args, method, mutable=(), **kwargs):
    return getattr(self, method)(variables, *args, **kwargs)

  def embed_image_and_text(self, _, image, text, *, input_mask, mask_ar):
    return (image[:, :, 0], input_mask, mask_ar), {}

  def embed_text(self, _, tokens):
    return tokens[:, :, None], {}

  def prefill_cache(self, _, x, input_mask, mask_ar, *, cache_size):
    script = x[:, :, 0].astype(jnp.int32)
    cache = {"script": script, "next": 1, "last": script[:, 0]}
    return self._logits(script[:, 0]), {"cache": cache}

  def extend_cache(self, variables, x):
    jax.debug.callback(self.on_step)
    cache = variables["cache"]
    # A row that is not fed its last token leaves the script for good.
    derailed = x[:, 0, 0] != cache["last"]
    token = jnp.where(derailed, -1, cache["script"][:, cache["next"]])
    cache = cache | {"next": cache["next"] + 1, "last": token}
    return self._logits(token), {"cache": cache}

  def _logits(self, token):
    return jax.nn.one_hot(token, VOCABULARY)[:, None]


def scripted_batch(script, **extra):
  script = np.asarray(script, np.float32)
  image = np.tile(script[:, :, None, None], (1, 1, 1, 3))
  text = np.ones((len(script), 2), np.int32)
  masks = {"mask_ar": 0 * text, "mask_input": text.astype(bool)}
  return {"image": image, "text": text} | masks | extra


def test_rows_end_at_eos_and_at_the_limit():
  batch = scripted_batch(
    [
      [7, 9, EOS, 8, 8, 8, 8],
      [EOS, 7, 7, 7, 7, 7, 7],
      [3, PAD, 5, 6, 7, 8, EOS],
      [3, 4, 5, 6, 7, 8, 9],
    ]
  )
  decoded = decode.generate(Scripted(), {}, batch, max_decode_len=LENGTH)
  np.testing.assert_array_equal(
    decoded.tokens,
    [
      [7, 9, EOS, PAD, PAD, PAD, PAD],
      [EOS, PAD, PAD, PAD, PAD, PAD, PAD],
      [3, PAD, 5, 6, 7, 8, EOS],
      [3, 4, 5, 6, 7, 8, 9],
    ],
  )
  np.testing.assert_array_equal(decoded.num_tokens, [3, 1, 7, 7])
  emitted = np.arange(LENGTH) < np.array([[3], [1], [7], [7]])
  # The scripted token has logit 1, every other one 0.
  log_prob = 1 - np.log(np.e + VOCABULARY - 1)
  np.testing.assert_allclose(
    decoded.log_probs, np.where(emitted, log_prob, 0), rtol=1e-5
  )


@pytest.mark.parametrize(
  ("script", "steps"),
  [
    ([[3, 4, 5, 6, 7, 8, 9]], LENGTH - 1),
    ([[3, EOS, 5, 6, 7, 8, 9], [3, 4, EOS, 6, 7, 8, 9]], 2),
    ([[EOS, 4, 5, 6, 7, 8, 9]], 0),
  ],
)
def test_no_step_is_computed_that_nothing_reads(script, steps):
  calls = []
  model = Scripted(on_step=lambda: calls.append(1))
  decode.generate(model, {}, scripted_batch(script), max_decode_len=LENGTH)
  jax.effects_barrier()
  assert len(calls) == steps


def test_rows_that_fill_up_the_batch_are_not_decoded():
  calls = []
  model = Scripted(on_step=lambda: calls.append(1))
  script = [[3, EOS, 5, 6, 7, 8, 9], [3, 4, 5, 6, 7, 8, 9]]
  batch = scripted_batch(script, _mask=np.array([True, False]))
  decoded = decode.generate(model, {}, batch, max_decode_len=LENGTH)
  jax.effects_barrier()
  assert len(calls) == 1
  np.testing.assert_array_equal(decoded.tokens[1], [PAD] * LENGTH)
  np.testing.assert_array_equal(decoded.log_probs[1], [0.0] * LENGTH)
  np.testing.assert_array_equal(decoded.num_tokens, [2, 0])


def test_eos_and_pad_are_arguments():
  batch = scripted_batch([[3, 4, 5, 6, 7, 8, 9]])
  decoded = decode.generate(
    Scripted(), {}, batch, max_decode_len=LENGTH, eos_id=5, pad_id=2
  )
  np.testing.assert_array_equal(decoded.tokens, [[3, 4, 5, 2, 2, 2, 2]])


@pytest.fixture(scope="module")
def real():
  """A real model, its random parameters and a batch of ragged prompts."""
  model = paligemma_model.make(
    "paligemma2_tiny",
    vocab_size=VOCABULARY,
    img={"width": 12, "depth": 1, "mlp_dim": 20, "num_heads": 3},
    llm={
      "width": 28,
      "depth": 3,
      "mlp_dim": 44,
      "head_dim": 10,
      "sliding_window": 9,
      "final_logits_softcap": 30.0,
    },
  )
  rng = np.random.default_rng(0)
  shape = (len(LENGTHS), max(LENGTHS))
  mask_input = np.arange(shape[1]) < np.array(LENGTHS)[:, None]
  text = np.where(mask_input, rng.integers(3, VOCABULARY, shape), PAD)
  image = rng.uniform(-1, 1, (shape[0], 28, 28, 3)).astype(np.float32)
  batch = {
    "image": image,
    "text": text.astype(np.int32),
    "mask_ar": (~mask_input).astype(np.int32),
    "mask_input": mask_input,
  }
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), image, batch["text"], batch["mask_ar"]
  )
  # Drawn here, since to compile the initialisers takes longer than the tests.
  params = jax.tree.map(
    lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes["params"]
  )
  # The table is tied to the logits: a large one makes each token repeat itself.
  params["llm"]["embedder"]["input_embedding"] *= 0.2
  return model, jax.device_put(params), batch


SAMPLER = samplers.Nucleus(p=0.8, temperature=2.0)


def draw(model, params, batch, seed):
  """Decodes without an eos, so that all rows run to the limit."""
  return decode.generate(
    model,
    params,
    batch,
    max_decode_len=LENGTH,
    sampler=SAMPLER,
    rng=jax.random.key(seed),
    eos_id=-1,
  )


def greedy(model, params, batch, eos_id=-1):
  return decode.generate(
    model, params, batch, max_decode_len=LENGTH, eos_id=eos_id
  )


def rows(tree, keep):
  return jax.tree.map(lambda x: x[np.asarray(keep)], tree)


def assert_same(decoded, other):
  np.testing.assert_array_equal(decoded.tokens, other.tokens)
  np.testing.assert_array_equal(decoded.num_tokens, other.num_tokens)
  np.testing.assert_allclose(decoded.log_probs, other.log_probs, atol=1e-4)


@functools.partial(jax.jit, static_argnums=0)
def _apply(model, *args, **kwargs):
  return model.apply(*args, **kwargs)


def teacher_forced(model, params, batch, tokens):
  """Log-probs f32[B, L, V] of the decoded positions by one full forward.

  Each row is its prompt, then its tokens, then padding.
  """
  shape = (len(LENGTHS), max(LENGTHS) + LENGTH)
  text = np.full(shape, PAD, np.int32)
  position = np.broadcast_to(np.arange(shape[1]), shape)
  lengths = np.array(LENGTHS)[:, None]
  for row, length in enumerate(LENGTHS):
    text[row, :length] = batch["text"][row, :length]
    text[row, length : length + LENGTH] = tokens[row]
  logits, _ = _apply(
    model,
    {"params": params},
    batch["image"],
    text,
    (position >= lengths).astype(np.int32),
    input_mask=position < lengths + LENGTH,
  )
  at = lengths - 1 + np.arange(LENGTH)
  return np.stack(
    [jax.nn.log_softmax(logits[row, at[row]]) for row in range(len(LENGTHS))]
  )


def test_decoding_with_a_cache_is_the_full_forward(real):
  model, params, batch = real
  decoded = greedy(model, params, batch)
  assert len(np.unique(decoded.tokens)) > 2 * len(LENGTHS)  # not constant
  expected = teacher_forced(model, params, batch, decoded.tokens)
  np.testing.assert_array_equal(decoded.tokens, expected.argmax(axis=-1))
  np.testing.assert_allclose(
    decoded.log_probs, expected.max(axis=-1), atol=1e-4
  )


def test_log_probs_are_the_models_whatever_the_sampler_does(real):
  model, params, batch = real
  decoded = draw(model, params, batch, seed=0)
  expected = teacher_forced(model, params, batch, decoded.tokens)
  chosen = np.asarray(decoded.tokens)[..., None]
  np.testing.assert_allclose(
    decoded.log_probs,
    np.take_along_axis(expected, chosen, axis=-1)[..., 0],
    atol=1e-4,
  )


def test_a_row_that_ends_leaves_the_others_alone(real):
  model, params, batch = real
  free = greedy(model, params, batch)
  eos_id = int(free.tokens[0, 2])
  ended = greedy(model, params, batch, eos_id)
  for row, tokens in enumerate(np.asarray(free.tokens).tolist()):
    n = tokens.index(eos_id) + 1 if eos_id in tokens else LENGTH
    assert ended.num_tokens[row] == n
    np.testing.assert_array_equal(ended.tokens[row, :n], tokens[:n])
    np.testing.assert_array_equal(ended.tokens[row, n:], PAD)
  assert ended.num_tokens.min() < ended.num_tokens.max()


def test_rows_do_not_depend_on_the_batch(real):
  model, params, batch = real
  together = greedy(model, params, batch)
  for row in range(len(LENGTHS)):
    alone = greedy(model, params, rows(batch, [row]))
    assert_same(alone, rows(together, [row]))


def test_filling_rows_change_nothing(real):
  model, params, batch = real
  decoded = greedy(model, params, batch)
  mask = {"_mask": np.array([True, True, True, False])}
  padded = greedy(model, params, rows(batch, [0, 1, 2, 0]) | mask)
  assert_same(rows(padded, [0, 1, 2]), rows(decoded, [0, 1, 2]))


def test_sharded_is_single_device(real):
  model, params, batch = real
  mesh = sharding.make_mesh(data=4, model=2)
  # The widths, heads and hidden sizes of this model are even.
  split_last = jax.tree.map(
    lambda x: NamedSharding(
      mesh, P(*[None] * (x.ndim - 1), "model" if x.shape[-1] % 2 == 0 else None)
    ),
    params,
  )
  sharded = draw(
    model,
    jax.device_put(params, split_last),
    sharding.put_batch(batch, mesh),
    seed=0,
  )
  assert len(sharded.tokens.sharding.device_set) == 8
  single = draw(model, params, batch, seed=0)
  assert_same(sharding.fetch(sharded), jax.device_get(single))


def test_drawn_tokens_follow_the_rng(real):
  model, params, batch = real
  first, again, other = (draw(model, params, batch, seed) for seed in (0, 0, 1))
  np.testing.assert_array_equal(first.tokens, again.tokens)
  assert np.any(first.tokens != other.tokens)


def test_each_step_draws_anew():
  # The same logits at every step: a key used twice would repeat the token.
  batch = scripted_batch([[3] * LENGTH])
  decoded = decode.generate(
    Scripted(),
    {},
    batch,
    max_decode_len=LENGTH,
    sampler=samplers.Temperature(1e6),
    rng=jax.random.key(0),
    eos_id=-1,
  )
  assert len(np.unique(decoded.tokens)) > LENGTH // 2


def test_same_shapes_compile_once(real):
  model, params, batch = real
  draw(model, params, batch, seed=0)
  compiled = decode.program.num_compiled()
  other = batch | {"text": batch["text"][::-1], "prefix": ["not an array"] * 4}
  draw(model.clone(), params, other, seed=1)
  assert decode.program.num_compiled() == compiled


@pytest.mark.parametrize(
  ("max_decode_len", "buckets", "lengths", "programs"),
  [
    (3, decode.PROMPT_BUCKETS, (2, 5, 16), 1),
    (4, decode.PROMPT_BUCKETS, (17, 32, 2, 31), 2),
    (5, (4, 8), (8, 9, 11), 3),  # nothing is padded beyond the last
    (6, (), (2, 5), 2),
  ],
)
def test_prompts_of_any_length_share_a_few_programs(
  max_decode_len, buckets, lengths, programs
):
  compiled = decode.program.num_compiled()
  for length in lengths:
    batch = scripted_batch([[3, 4, 5, 6, 7, 8, 9]])
    batch |= {
      key: np.repeat(batch[key][:, :1], length, axis=1)
      for key in ("text", "mask_ar", "mask_input")
    }
    decoded = decode.generate(
      Scripted(),
      {},
      batch,
      max_decode_len=max_decode_len,
      eos_id=length,  # no reason to compile again
      prompt_buckets=buckets,
    )
    assert decoded.tokens.shape == (1, max_decode_len)
  assert decode.program.num_compiled() == compiled + programs


def test_layers_are_read_stacked_or_apart(real, monkeypatch):
  model, params, batch = real
  layers = params["llm"]["layers"]
  size = sum(x.nbytes for x in jax.tree.leaves(layers))
  apart, unstacked = model.unstack_decoder(params)
  decoded = greedy(apart, unstacked, batch)
  for memory, fits in ((8 * size, True), (8 * size - 1, False)):
    monkeypatch.setattr(decode, "_memory_of_device", lambda _, m=memory: m)
    assert decode._has_room_to_unstack(params) == fits
    assert_same(greedy(model, params, batch), decoded)
  for there in (unstacked, {"llm": jax.tree.map(np.asarray, params["llm"])}):
    assert not decode._has_room_to_unstack(there)


@pytest.mark.parametrize("unstack", [True, False])
def test_a_loop_over_tokens_has_no_stack_of_weights(real, unstack):
  model, params, batch = real

  def run(params, batch):
    if unstack:
      return greedy(*model.unstack_decoder(params), batch)
    return greedy(model, params, batch)

  hlo = jax.jit(run).lower(params, batch).compile().as_text()
  gating = params["llm"]["layers"]["mlp"]["gating_einsum"].shape
  stack, layer = (",".join(map(str, s)) for s in (gating, gating[1:]))
  loops = [x for x in hlo.splitlines() if " while(" in x]
  assert any(f"f32[{stack}]" in x for x in loops) != unstack
  assert any(f"f32[{layer}]" in x for x in loops) == unstack


def test_buckets_change_no_answer(real):
  model, params, batch = real
  padded, exact = (
    decode.generate(
      model, params, batch, max_decode_len=LENGTH, prompt_buckets=buckets
    )
    for buckets in (decode.PROMPT_BUCKETS, ())
  )
  assert batch["text"].shape[1] not in decode.PROMPT_BUCKETS
  assert_same(padded, exact)
  # Arrays on the device are padded there, and traced ones while traced.
  on_device = jax.device_put(batch)
  assert_same(greedy(model, params, on_device), greedy(model, params, batch))


def test_beams_stay_on_their_devices(real):
  model, params, batch = real
  beams, positions = 5, 4 + 16 + LENGTH - 1  # image, bucket and answer
  arguments = {
    "max_decode_len": LENGTH,
    "sampler": "beam(5)",
    "num_answers": 3,
    "eos_id": -1,
  }
  mesh = sharding.make_mesh(data=4, model=2)
  placed = (
    jax.device_put(params, sharding.replicated(mesh)),
    sharding.put_batch(batch, mesh),
  )
  compiled = (
    jax.jit(functools.partial(decode.generate, model, **arguments))
    .lower(*placed)
    .compile()
  )
  shapes = {
    tuple(map(int, shape.split(",")))
    for shape in re.findall(r"\w\[([\d,]+)\]", compiled.as_text())
  }
  # No device ever holds keys of more rows than its own, one prompt of four:
  # neither in the cache nor in the part of it that goes from beam to beam.
  llm = model.llm
  per_position = llm.depth * beams * llm.num_kv_heads * llm.head_dim
  for length in (positions, LENGTH - 1):
    held = [shape for shape in shapes if {length, llm.head_dim} <= {*shape}]
    assert max(map(math.prod, held)) == length * per_position
  single = decode.generate(model, params, batch, **arguments)
  assert_same(sharding.fetch(compiled(*placed)), jax.device_get(single))


IMAGE_OF_ROW = np.array([2, 0, 2, 1])


@pytest.mark.parametrize("embedded", [False, True])
def test_several_prompts_about_one_image(real, embedded):
  model, params, batch = real
  expected = greedy(
    model, params, batch | {"image": batch["image"][IMAGE_OF_ROW]}
  )
  other = greedy(model, params, batch)
  assert np.any(expected.tokens != other.tokens)

  about = {"image": batch["image"][:3], "image_index": IMAGE_OF_ROW}
  if embedded:
    image = about.pop("image")
    about["image_embedding"] = decode.embed_images(model, params, image)
    assert about["image_embedding"].shape == (3, 4, model.llm.width)
  prompts = {key: batch[key] for key in ("text", "mask_ar", "mask_input")}
  assert_same(greedy(model, params, prompts | about), expected)


def test_beams_are_the_full_forward(real):
  """Each beam has the cache of its own tokens."""
  model, params, batch = real
  decoded = decode.generate(
    model,
    params,
    batch,
    max_decode_len=LENGTH,
    sampler="beam(5)",
    num_answers=3,
    eos_id=-1,
  )
  greedy_score = greedy(model, params, batch).score
  assert np.all(decoded.score[:, 0] >= greedy_score - 1e-4)
  assert np.any(decoded.score[:, 0] > greedy_score + 0.1)
  for place in range(3):
    tokens = np.asarray(decoded.tokens[:, place])
    expected = teacher_forced(model, params, batch, tokens)
    expected = np.take_along_axis(expected, tokens[..., None], axis=-1)[..., 0]
    log_probs = decoded.log_probs[:, place]
    np.testing.assert_allclose(log_probs, expected, atol=1e-4)


# The tokens 5, 6 ... are letters.
LETTERS = Words([chr(ord("A") + i) for i in range(VOCABULARY - 5)])


def test_within_the_grammar_the_most_probable_token_is_taken(real):
  only = grammar.regex(LETTERS, "[A-F]{2}[G-M]*")
  model, params, batch = real
  decoded = jax.device_get(
    decode.generate(model, params, batch, max_decode_len=LENGTH, grammar=only)
  )
  log_probs = teacher_forced(model, params, batch, decoded.tokens)
  first, later = np.arange(5, 11), [EOS, *range(11, 18)]
  for row, number in enumerate(decoded.num_tokens):
    for n in range(number):
      ids = first if n < 2 else later if n < LENGTH - 1 else [EOS]
      token = decoded.tokens[row, n]
      assert token == ids[np.argmax(log_probs[row, n, ids])]
      # The model's own, which would often have taken another.
      own = log_probs[row, n, token]
      assert decoded.log_probs[row, n] == pytest.approx(own, abs=1e-4)
  assert np.any(log_probs.max(axis=-1)[:, 0] > decoded.log_probs[:, 0] + 0.1)


def without(batch, key):
  return {k: v for k, v in batch.items() if k != key}


BATCH = scripted_batch([[3, 4, 5, 6, 7, 8, 9]])
FOUR = grammar.choices(LETTERS, "ABCD")


@pytest.mark.parametrize(
  ("batch", "arguments", "message"),
  [
    (BATCH, {"sampler": "nucleus"}, r"Nucleus\(p=0.9.* give generate an rng"),
    (BATCH, {"sampler": "gredy"}, 'Did you mean "greedy"'),
    (BATCH, {"max_decode_len": 0}, "max_decode_len=0, expected at least 1"),
    (
      BATCH,
      {"grammar": FOUR, "max_decode_len": 4},
      "max_decode_len=4, but the shortest answer .* has 5 tokens, eos included",
    ),
    (
      BATCH,
      {"grammar": FOUR, "max_decode_len": 5, "eos_id": 2},
      "eos_id=2, but answers of the grammar end with 1, that of its tokenizer",
    ),
    (
      BATCH,
      {
        "grammar": grammar.choices(Words(["A"] * 57), "A"),
        "max_decode_len": 5,
      },
      "grammar was made for 62 tokens, the model writes 61: give grammar.make",
    ),
    (
      BATCH,
      {"grammar": "boxes"},
      "grammar is 'boxes', expected what grammar.m",
    ),
    (without(BATCH, "mask_input"), {}, "has no mask_input, .* found image"),
    (without(BATCH, "mask_ar"), {}, "has no mask_ar"),
    (BATCH | {"mask_loss": 0}, {}, "has mask_loss: its text holds the answer"),
    (without(BATCH, "image"), {}, "has no image, expected image, text"),
    (BATCH | {"image_embedding": 0}, {}, "has image and image_embedding"),
    (
      BATCH | {"image": np.zeros(2)},
      {},
      "has 2 images and 1 prompts: say in i",
    ),
    (
      BATCH | {"image_index": [0, 0]},
      {},
      r"image_index has shape \(2,\), expected \(1,\)",
    ),
    (
      BATCH | {"image_index": [1]},
      {},
      "image_index goes from 1 to 1, expected 0 to 0: the batch has 1 images",
    ),
  ],
)
@typecheck.off()
def test_errors(batch, arguments, message):
  with pytest.raises(ValueError, match=message):
    decode.generate(Scripted(), {}, batch, **{"max_decode_len": 2} | arguments)
