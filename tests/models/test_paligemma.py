"""Both towers together: one sequence, one answer on every path."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma import tree
from paligemma.models import paligemma
from tests import typecheck

WIDTH, VOCABULARY, PATCHES = 14, 31, 3
TEXT_LEN, PROMPT = 11, 7
IMG = {
  "variant": "mu/5",
  "width": 9,
  "num_heads": 3,
  "mlp_dim": 13,
  "remat_policy": "none",
}
LLM = {
  "width": WIDTH,
  "depth": 2,
  "mlp_dim": 17,
  "num_heads": 3,
  "num_kv_heads": 1,
  "head_dim": 10,
  "remat_policy": "none",
}
GEMMA2 = LLM | {
  "variant": "gemma2_nano",
  "num_heads": 6,
  "num_kv_heads": 3,
  "final_logits_softcap": 3.0,
  "sliding_window": 5,
}
STYLES = {"gemma": LLM, "gemma2": GEMMA2}
SAME = {"rtol": 1e-4, "atol": 2e-5}


def build(style, **overrides):
  return paligemma.make(
    "paligemma_tiny",
    vocab_size=VOCABULARY,
    img=IMG,
    llm={**STYLES[style], **overrides},
  )


def random_params(model, image, seed=0):
  """Weights of order one, nothing at its neutral start."""
  text = jnp.zeros((len(image), TEXT_LEN), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image, text, text)
  rng = np.random.default_rng(seed)
  flat = {
    name: 0.4 * rng.standard_normal(leaf.shape).astype(np.float32)
    for name, leaf in tree.flatten(shapes["params"]).items()
  }
  return tree.unflatten(flat)


def make_inputs(seed=0):
  """Two ragged prompts of 4 and 6 tokens, and a suffix of 4 behind both."""
  rng = np.random.default_rng(seed)
  prompt = np.array([[4], [6]])
  position = np.arange(TEXT_LEN)
  return {
    "image": rng.uniform(-1, 1, (2, 5, 15, 3)).astype(np.float32),
    "text": rng.integers(0, VOCABULARY, (2, TEXT_LEN), dtype=np.int32),
    "mask_ar": (position >= prompt).astype(np.int32),
    "input_mask": (position < prompt) | (position >= PROMPT),
  }


def decode(model, params, image, text, mask_ar, input_mask, **frames):
  """Logits after the prompt and after each token of the suffix."""
  params = {"params": params}
  (x, mask, ar), _ = model.apply(
    params,
    image,
    text[:, :PROMPT],
    input_mask=input_mask[:, :PROMPT],
    mask_ar=mask_ar[:, :PROMPT],
    method="embed_image_and_text",
    **frames,
  )
  logits, cache = model.apply(
    params,
    x,
    mask,
    ar,
    cache_size=x.shape[1] + TEXT_LEN - PROMPT,
    mutable=["cache"],
    method="prefill_cache",
  )

  def step(cache, tokens):
    ztxt, _ = model.apply(params, tokens[:, None], method="embed_text")
    logits, cache = model.apply(
      params | cache, ztxt, mutable=["cache"], method="extend_cache"
    )
    return cache, logits[:, 0]

  _, rest = jax.lax.scan(step, cache, text[:, PROMPT:].T)
  return jnp.concatenate([logits, jnp.swapaxes(rest, 0, 1)], axis=1)


class Case:
  """A model with random weights, its inputs and its compiled paths."""

  def __init__(self, model):
    self.model = model
    self.inputs = make_inputs()
    self.params = random_params(model, self.inputs["image"])
    self.decode = jax.jit(functools.partial(decode, model, self.params))
    self._apply = jax.jit(
      functools.partial(model.apply, {"params": self.params})
    )

  def forward(self, **inputs):
    return self._apply(**inputs)[0]


@functools.lru_cache
def make_case(style):
  return Case(build(style))


@pytest.fixture(params=STYLES)
def case(request):
  return make_case(request.param)


def assert_decodes_like_forward(case, inputs):
  full = np.asarray(case.forward(**inputs))
  stepwise = case.decode(**inputs)
  last = [np.flatnonzero(row[:PROMPT])[-1] for row in inputs["input_mask"]]
  np.testing.assert_allclose(stepwise[:, 0], full[[0, 1], last], **SAME)
  np.testing.assert_allclose(stepwise[:, 1:], full[:, PROMPT:], **SAME)


def test_prefill_and_extend_equal_forward(case):
  assert_decodes_like_forward(case, case.inputs)


def test_ragged_batch_equals_its_rows_one_by_one(case):
  together = np.asarray(case.forward(**case.inputs))
  for row, valid in enumerate(case.inputs["input_mask"]):
    alone = case.forward(
      image=case.inputs["image"][row : row + 1],
      text=case.inputs["text"][row : row + 1, valid],
      mask_ar=case.inputs["mask_ar"][row : row + 1, valid],
    )
    np.testing.assert_allclose(together[row, valid], alone[0], **SAME)


def test_padding_tokens_never_matter(case):
  text, input_mask = case.inputs["text"], case.inputs["input_mask"]
  other = case.inputs | {"text": np.where(input_mask, text, 30 - text)}
  one, two = (case.forward(**inputs) for inputs in (case.inputs, other))
  np.testing.assert_array_equal(one[input_mask], two[input_mask])
  one, two = (case.decode(**inputs) for inputs in (case.inputs, other))
  np.testing.assert_array_equal(one, two)


def test_answer_leaves_earlier_logits_alone(case):
  other = case.inputs["text"].copy()
  other[:, 9:] = 30 - other[:, 9:]
  one = np.asarray(case.forward(**case.inputs))
  two = np.asarray(case.forward(**case.inputs | {"text": other}))
  earlier = case.inputs["input_mask"] & (np.arange(TEXT_LEN) < 9)
  np.testing.assert_array_equal(one[earlier], two[earlier])
  assert np.abs(one - two)[:, 9:].max(axis=-1).min() > 1e-3


def test_image_matters_to_every_token(case):
  image = case.inputs["image"].copy()
  image[:, :, -5:] *= -1  # the last patch: the one nearest to the text
  one = np.asarray(case.forward(**case.inputs))
  two = np.asarray(case.forward(**case.inputs | {"image": image}))
  valid = case.inputs["input_mask"]
  assert np.abs(one - two)[valid].max(axis=-1).min() > 1e-4


def test_layout_of_image_and_text():
  case = make_case("gemma")
  apply = jax.jit(
    functools.partial(
      case.model.apply, {"params": case.params}, method="embed_image_and_text"
    )
  )
  inputs = case.inputs
  (x, input_mask, mask_ar), out = apply(**inputs)
  table = case.params["llm"]["embedder"]["input_embedding"]
  ztxt = table[inputs["text"]] * np.float32(WIDTH**0.5)
  np.testing.assert_allclose(x[:, PATCHES:], ztxt, rtol=1e-6)
  np.testing.assert_array_equal(out["llm/ztxt"], x[:, PATCHES:])
  # Only text is scaled by sqrt(D): image tokens come straight off the head.
  head = case.params["img"]["head"]
  zimg = np.asarray(out["img/encoded"]) @ head["kernel"]
  zimg += head["bias"]
  np.testing.assert_allclose(x[:, :PATCHES], zimg, rtol=1e-4, atol=1e-5)

  pad_left = [(0, 0), (PATCHES, 0)]
  expected = np.pad(inputs["input_mask"], pad_left, constant_values=True)
  np.testing.assert_array_equal(input_mask, expected)
  np.testing.assert_array_equal(mask_ar, np.pad(inputs["mask_ar"], pad_left))

  (_, input_mask, mask_ar), _ = apply(
    image=inputs["image"], text=inputs["text"]
  )
  assert bool(input_mask.all())
  np.testing.assert_array_equal(mask_ar[0], [0] * PATCHES + [1] * TEXT_LEN)


def make_frames():
  """Three frames of which row 0 has the first two, row 1 the outer two."""
  rng = np.random.default_rng(3)
  frames = rng.uniform(-1, 1, (2, 3, 5, 15, 3)).astype(np.float32)
  return frames, np.array([[True, True, False], [True, False, True]])


def test_frames_equal_those_that_the_mask_keeps():
  case = make_case("gemma2")  # whose window counts kept frames only
  frames, frame_mask = make_frames()
  inputs = case.inputs | {"image": frames, "frame_mask": frame_mask}
  full = case.forward(**inputs)
  kept = np.stack([f[m] for f, m in zip(frames, frame_mask, strict=True)])
  expected = case.forward(**case.inputs | {"image": kept})
  valid = case.inputs["input_mask"]
  np.testing.assert_allclose(full[valid], expected[valid], **SAME)
  assert_decodes_like_forward(case, inputs)


def test_embed_image_concatenates_frames_in_order():
  case = make_case("gemma")
  frames, _ = make_frames()
  embed = jax.jit(
    functools.partial(
      case.model.apply, {"params": case.params}, method="embed_image"
    )
  )
  tokens, out = embed(frames)
  assert tokens.shape == (2, 3 * PATCHES, WIDTH)
  np.testing.assert_array_equal(out["img/zimg"], tokens)
  for i in range(3):
    alone, _ = embed(frames[:, i])
    np.testing.assert_allclose(
      tokens[:, i * PATCHES : (i + 1) * PATCHES], alone, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
  ("frames", "mask_shape"), [(True, (2, 1)), (True, (1, 3)), (False, (2, 3))]
)
@typecheck.off()
def test_frame_mask_must_fit(frames, mask_shape):
  case = make_case("gemma")
  image = make_frames()[0] if frames else case.inputs["image"]
  inputs = case.inputs | {"image": image}
  with pytest.raises(ValueError, match=r"frame_mask of shape \(.*does not fit"):
    jax.eval_shape(
      functools.partial(case.model.apply, {"params": case.params}),
      **inputs,
      frame_mask=np.ones(mask_shape, bool),
    )


def test_intermediates_name_their_tower():
  case = make_case("gemma2")
  _, out = jax.eval_shape(
    functools.partial(case.model.apply, {"params": case.params}), **case.inputs
  )
  length = PATCHES + TEXT_LEN
  encoder = out.pop("img/encoder")
  assert encoder["block00"].keys() == {"sa", "+sa", "mlp", "+mlp"}
  shapes = {name: value.shape for name, value in out.items()}
  (rows, columns) = shapes["img/stem"][1:3]
  assert rows * columns == PATCHES
  assert shapes == {
    "img/stem": (2, rows, columns, 9),
    "img/with_posemb": (2, PATCHES, 9),
    "img/encoded": (2, PATCHES, 9),
    "img/head_input": (2, PATCHES, 9),
    "img/pre_logits": (2, PATCHES, 9),
    "img/pre_logits_2d": (2, rows, columns, 9),
    "img/logits": (2, PATCHES, WIDTH),
    "img/logits_2d": (2, rows, columns, WIDTH),
    "img/zimg": (2, PATCHES, WIDTH),
    "llm/ztxt": (2, TEXT_LEN, WIDTH),
    "llm/attn_mask": (2, length, length),
    "llm/encoded": (2, length, WIDTH),
    "llm/pre_logits": (2, length, WIDTH),
    "llm/logits": (2, length, VOCABULARY),
    "attn_mask": (2, length, length),
    "text_logits": (2, TEXT_LEN, VOCABULARY),
    "text_tokens": (2, TEXT_LEN),
  }


def test_intermediates_of_the_whole_sequence():
  case = make_case("gemma2")
  logits, out = jax.jit(
    functools.partial(case.model.apply, {"params": case.params})
  )(**case.inputs)
  np.testing.assert_allclose(
    out["llm/logits"][:, PATCHES:], out["text_logits"], **SAME
  )
  np.testing.assert_array_equal(out["text_logits"], logits)
  np.testing.assert_array_equal(out["text_tokens"], logits.argmax(axis=-1))
  np.testing.assert_array_equal(out["attn_mask"], out["llm/attn_mask"])
  np.testing.assert_array_equal(out["img/logits"], out["img/zimg"])


def test_logits_of_the_image_are_computed_only_if_asked_for():
  case = make_case("gemma")

  def flops(function):
    compiled = jax.jit(function).lower(case.params).compile()
    return compiled.cost_analysis()["flops"]

  def apply(params, **kwargs):
    return case.model.apply({"params": params}, **case.inputs, **kwargs)

  alone = flops(lambda p: apply(p)[0])
  everything = flops(apply)
  more = 2 * 2 * (PATCHES + TEXT_LEN) * WIDTH * VOCABULARY
  assert everything - alone > 0.9 * more


def test_dropout_reaches_both_towers():
  inputs = make_inputs()
  case = make_case("gemma")

  def train(key, towers):
    rate = {tower: {"dropout": 0.5} for tower in towers}
    model = paligemma.make(
      "paligemma_tiny",
      vocab_size=VOCABULARY,
      img=IMG | rate.get("img", {}),
      llm=LLM | rate.get("llm", {}),
    )
    return model.apply(
      {"params": case.params}, **inputs, train=True, rngs={"dropout": key}
    )[0]

  train = jax.jit(train, static_argnames="towers")
  expected = case.forward(**inputs)
  for towers in (("img",), ("llm",)):
    one, two = (train(jax.random.key(seed), towers) for seed in (1, 2))
    assert np.abs(one - two).max() > 0.1
    assert np.abs(one - expected).max() > 0.1


def test_models_are_hashable_by_value():
  one, same, other = build("gemma"), build("gemma"), build("gemma2")
  assert one == same and hash(one) == hash(same)
  assert one != other


def test_make_passes_on_what_differs():
  model = paligemma.make(
    "paligemma2_3b",
    vocab_size=101,
    dtype="bfloat16",
    img={"variant": "B/16", "dtype": "float32"},
    llm={"depth": 3, "final_logits_softcap": 5.0},
  )
  assert (model.img.width, model.img.patch_size) == (768, 16)
  assert (model.img.dtype, model.llm.dtype) == ("float32", "bfloat16")
  assert model.img.num_classes == model.llm.width == 2304
  assert (model.llm.vocab_size, model.llm.depth) == (101, 3)
  assert model.llm.final_logits_softcap == 5.0
  assert model.llm.attn_logits_softcap == 50.0
  assert model.llm.sliding_window is None


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (
      {"variant": "paligemma_3B"},
      r'unknown variant "paligemma_3B".*Did you mean "paligemma_3b"\?',
    ),
    (
      {"img": {"variant": "S400m/14"}},
      r'unknown image tower "S400m".*Did you mean "So400m"\?',
    ),
    (
      {"llm": {"variant": "gemma3_2b"}},
      r'unknown decoder "gemma3_2b".*Did you mean "gemma',
    ),
    (
      {"llm": {"head_dims": 3}},
      r'unknown decoder field "head_dims".*Did you mean "head_dim"\?',
    ),
  ],
)
def test_make_knows_its_names(arguments, message):
  with pytest.raises(ValueError, match=message):
    paligemma.make(**arguments)
