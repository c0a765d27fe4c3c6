"""Grammars in the decode loop, over models whose logits are random."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from paligemma.data import location, tokenizer
from paligemma.decoding import decode, grammar, samplers
from paligemma.metrics import segmentation
from paligemma.models import paligemma as paligemma_model
from paligemma.training import sharding
from tests.decoding.grammar.words import Words, accepts

EOS, PAD = 1, 0
CODES = 2503
LENGTH = 7
LETTERS = Words([chr(ord("A") + i) for i in range(26)] + ["AB", "BC", "XY"])
V = LETTERS.vocab_size
SAMPLERS = [
  *("greedy", "temperature(2)", "top_k(5)", "nucleus(0.7)", "beam(3, 0.6)"),
  "best_of(3, top_k(7, 2.0))",
]


class Chaotic(nn.Module):
  """A model whose logits are a row of a random table, by all tokens so far."""

  img: None = None

  def apply(self, variables, *args, method, mutable=(), **kwargs):
    return getattr(self, method)(variables, *args, **kwargs)

  def embed_image_and_text(self, _, image, text, *, input_mask, mask_ar):
    return (text[:, :, None], input_mask, mask_ar), {}

  def embed_text(self, _, tokens):
    return tokens[:, :, None], {}

  def prefill_cache(self, variables, x, input_mask, mask_ar, *, cache_size):
    weights = jnp.arange(1, x.shape[1] + 1)[None]
    digest = jnp.sum(x[:, :, 0] * weights, axis=1) % CODES
    return self._logits(variables, digest)

  def extend_cache(self, variables, x):
    digest = (variables["cache"]["digest"] * 31 + x[:, 0, 0]) % CODES
    return self._logits(variables, digest)

  def _logits(self, variables, digest):
    logits = variables["params"]["table"][digest]
    return logits[:, None], {"cache": {"digest": digest}}


def make_table(vocabulary=V, eos_logit=0.0):
  table = np.random.default_rng(0).normal(0, 3, (CODES, vocabulary))
  table[:, EOS] += eos_logit
  return {"table": table.astype(np.float32)}


def make_batch(rows=11, **extra):
  text = np.full((rows, 3), 5, np.int32)
  text[:, 0] = 2 + 31 * np.arange(rows) % CODES  # no two prompts are alike
  masks = {"mask_ar": 0 * text, "mask_input": np.ones_like(text, bool)}
  return {"text": text} | masks | extra


def generate(only, sampler="greedy", **arguments):
  params = arguments.pop("params", None) or make_table()
  batch = arguments.pop("batch", None) or make_batch()
  if samplers.make(sampler).stochastic:
    arguments["rng"] = jax.random.key(arguments.pop("seed", 0))
  return decode.generate(
    arguments.pop("model", Chaotic()),
    params,
    batch,
    sampler=sampler,
    grammar=only,
    prompt_buckets=(),
    **{"max_decode_len": LENGTH} | arguments,
  )


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_keeps_to_the_grammar(sampler):
  only = grammar.regex(LETTERS, "A[B-F]{2}(X[YZ])*|(AB)*C|G{7}")
  # It would rather not end.
  params = make_table(eos_logit=-9.0)
  decoded = jax.device_get(generate(only, sampler, params=params))
  assert len({tuple(tokens) for tokens in decoded.tokens}) > 4
  for tokens, number in zip(decoded.tokens, decoded.num_tokens, strict=True):
    assert tokens[number - 1] == EOS and number <= LENGTH
    assert np.all(tokens[number:] == PAD)
    assert accepts(only, tokens[: number - 1])
  assert np.all(np.isfinite(decoded.score))
  # Where anything is allowed, every bit is as without a grammar.
  free, allowed = generate(None, sampler), grammar.anything(LETTERS)
  is_cut = np.max(np.asarray(free.tokens) == EOS, axis=1) == 0
  assert np.any(is_cut) == (not sampler.startswith("beam"))
  for one, other in zip(free, generate(allowed, sampler), strict=True):
    np.testing.assert_array_equal(one, other)


def log_prob(params, prompt, answer):
  """NumPy, float64: of an answer, under the model's own softmax."""
  digest, total = int(prompt @ np.arange(1, 4)) % CODES, 0.0
  for token in answer:
    logits = params["table"][digest].astype(np.float64)
    total += logits[token] - np.log(np.exp(logits).sum())
    digest = (digest * 31 + token) % CODES
  return total


def test_a_wide_beam_ranks_all_answers():
  choices = ["A", "AB", "ABC", "ABCDE", "XY", "XYZ", "Q", "ZZZZ"]
  alpha, only = 2.0, grammar.choices(LETTERS, choices)
  decoded = generate(only, samplers.Beam(9, alpha), num_answers=9)
  answers = [[*LETTERS.encode(text), EOS] for text in choices]
  for row, prompt in enumerate(make_batch()["text"]):
    totals = [log_prob(make_table(), prompt, answer) for answer in answers]
    scores = [
      total / ((5 + len(answer)) / 6) ** alpha
      for total, answer in zip(totals, answers, strict=True)
    ]
    order = np.argsort(scores)[::-1]
    score = decoded.score[row]
    np.testing.assert_allclose(score[:8], np.array(scores)[order], atol=1e-4)
    assert np.isneginf(score[8]) and decoded.num_tokens[row, 8] == 0
    for place, n in enumerate(order):
      tokens = np.asarray(decoded.tokens[row, place])
      assert tokens[: len(answers[n])].tolist() == answers[n]
      own = np.asarray(decoded.log_probs[row, place]).sum()
      assert own == pytest.approx(totals[n], abs=1e-4)


def test_rows_are_answered_each_for_itself():
  only, batch = grammar.choices(LETTERS, "ABC", "ABBA", "D"), make_batch()
  whole = generate(only)
  turned = generate(only, batch={key: x[::-1] for key, x in batch.items()})
  np.testing.assert_array_equal(turned.tokens, whole.tokens[::-1])
  mask = np.arange(11) % 3 > 0
  filled = generate(only, batch=make_batch(_mask=mask))
  np.testing.assert_array_equal(np.asarray(filled.num_tokens) > 0, mask)
  np.testing.assert_array_equal(filled.tokens[mask], whole.tokens[mask])
  assert np.all(filled.tokens[~mask] == PAD)


def test_another_grammar_compiles_nothing():
  generate(grammar.choices(LETTERS, "AB", "CA"))
  compiled = decode.program.num_compiled()
  decoded = generate(grammar.regex(LETTERS, "(XY){1,2}|Z"))
  assert decode.program.num_compiled() == compiled
  texts = {LETTERS.decode(ids) for ids in np.asarray(decoded.tokens).tolist()}
  assert texts <= {"XY", "XYXY", "Z"}


def test_under_a_mesh_logits_stay_where_they_are():
  only = grammar.regex(LETTERS, "[A-F]{2}([G-M][N-Z])*")
  mesh = sharding.make_mesh(data=4, model=2)
  vocabulary = V + V % 2  # which the model axis splits in two
  params, batch = make_table(vocabulary), make_batch(rows=12)
  split = NamedSharding(mesh, P(None, "model"))
  placed = (jax.device_put(params, split), sharding.put_batch(batch, mesh))
  run = functools.partial(
    decode.generate,
    Chaotic(),
    max_decode_len=LENGTH,
    sampler="beam(2)",
    prompt_buckets=(),
  )
  compiled = jax.jit(run).lower(*placed, grammar=only).compile()
  shapes = re.findall(r"(?:f32|pred)\[([\d,]+)\]", compiled.as_text())
  widths = {int(size) for shape in shapes for size in shape.split(",")}
  assert vocabulary // 2 in widths and vocabulary not in widths
  sharded = sharding.fetch(compiled(*placed, grammar=only))
  single = generate(only, "beam(2)", params=params, batch=batch)
  np.testing.assert_array_equal(sharded.tokens, single.tokens)
  np.testing.assert_allclose(sharded.log_probs, single.log_probs, atol=1e-5)


# As many locations and codes as there are, and pieces of any kind.
PIECES = ["red", " red", " digit", " ", ";", " ;", " ; ", "<", "dig", "it", "é"]
BOXES = Words(PIECES, locations=1024, codes=128, with_bytes=True)


def invalid_boxes(text, masks):
  """Whether the parsers of location and of metrics find a text invalid."""
  objects = location.parse(text, (97, 89))
  bad = any(
    thing.problem or not thing.box or not thing.label for thing in objects
  )
  if masks:
    codes = [thing.codes is None for thing in objects]
    bad |= any(codes) or segmentation.parse(text) is None
  return bad


@pytest.mark.parametrize(
  ("written", "limit", "eos_logit"),
  [
    ("boxes", 23, 4.0),
    ('boxes(masks="optional")', 31, -99.0),
    ("boxes(masks=True)", 27, 0.0),
    ('boxes(["digit", "red", "red digit"], masks=True, at_most=2)', 47, 0.0),
  ],
)
def test_of_10_000_answers_none_is_invalid(written, limit, eos_logit):
  decoded = generate(
    grammar.make(written, BOXES),
    params=make_table(BOXES.vocab_size, eos_logit),
    batch=make_batch(rows=2500),
    max_decode_len=limit,
  )
  tokens = np.asarray(decoded.tokens)
  last = tokens[np.arange(2500), np.asarray(decoded.num_tokens) - 1]
  assert np.all(last == EOS)
  texts = [BOXES.decode(ids) for ids in tokens.tolist()]
  assert len(set(texts)) > 2400
  masks = "masks=True" in written
  assert [text for text in texts if invalid_boxes(text, masks)] == []


def test_paligemma_with_random_weights_writes_nothing_invalid():
  tiny = tokenizer.Tokenizer("paligemma/assets/tiny_tokenizer.model")
  model = paligemma_model.make(
    "paligemma_tiny",
    vocab_size=tiny.vocab_size,
    img={"width": 12, "depth": 1, "mlp_dim": 20, "num_heads": 3},
    llm={"width": 28, "depth": 1, "mlp_dim": 44, "head_dim": 10},
  )
  batch = make_batch(rows=41)
  rng = np.random.default_rng(0)
  image = rng.uniform(-1, 1, (41, 28, 28, 3)).astype(np.float32)
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), image, batch["text"], batch["mask_ar"]
  )
  params = jax.tree.map(
    lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), shapes["params"]
  )
  decoded = generate(
    grammar.boxes(tiny, ["red", "digit"], masks=True),
    "temperature",
    model=model,
    params=params,
    batch=batch | {"image": image},
    max_decode_len=47,
  )
  texts = [tiny.decode(ids) for ids in np.asarray(decoded.tokens).tolist()]
  assert len(set(texts)) == 41 and any(" ; " in text for text in texts)
  assert not any(invalid_boxes(text, masks=True) for text in texts)
