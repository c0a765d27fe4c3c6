"""The public calls: load, ask; and that all is said about a wrong one."""

import io
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import paligemma
from paligemma import decode, tree
from paligemma.checkpoints import leaves, npz
from paligemma.data import image as image_lib
from paligemma.data import sequence
from paligemma.models import paligemma as paligemma_model

RES, LIMIT = 28, 4
PROMPTS = ("what", "caption en", "count red dots", "detect", "what digit is")


def make(variant, **llm):
  return paligemma_model.make(
    variant,
    img=dict(width=12, depth=2, mlp_dim=20, num_heads=3),
    llm=dict(width=16, depth=2, mlp_dim=22, head_dim=10, **llm),
  )


def random_params(model):
  """Flat float32 parameters under which answers differ between prompts."""
  image = np.zeros((1, RES, RES, 3), np.float32)
  text = np.zeros((1, 2), np.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image, text, text)
  rng = np.random.default_rng(1)
  flat = {
    name: rng.normal(0, 0.3, leaf.shape).astype(np.float32)
    for name, leaf in tree.flatten(shapes["params"]).items()
  }
  # The table is tied to the logits: a large one makes each token repeat itself.
  flat["llm/embedder/input_embedding"] *= 0.2
  return flat


@pytest.fixture(scope="module")
def tokenizer():
  folder = paligemma.__path__[0]
  return paligemma.Tokenizer(f"{folder}/assets/tiny_tokenizer.model")


@pytest.fixture(scope="module")
def pictures():
  """Five pictures of different sizes, uint8[H, W, 3]."""
  rng = np.random.default_rng(0)
  return [rng.integers(0, 256, (19 + i, 41 - i, 3), np.uint8) for i in range(5)]


@pytest.fixture(scope="module")
def gemma1(tmp_path_factory):
  """Path of a checkpoint, its model and its flat parameters."""
  return _saved(tmp_path_factory, make("paligemma_tiny"))


@pytest.fixture(scope="module")
def gemma2(tmp_path_factory):
  model = make("paligemma2_tiny", num_heads=6, num_kv_heads=2)
  return _saved(tmp_path_factory, model)


def _saved(tmp_path_factory, model):
  path = tmp_path_factory.mktemp("checkpoint") / "model.npz"
  flat = random_params(model)
  npz.save(path, flat)
  return path, model, flat


@pytest.mark.parametrize(
  ("metadata", "given", "wanted"),
  [
    ({}, None, "reference"),
    ({"preprocessing": "hf"}, None, "hf"),
    ({"preprocessing": "hf"}, "bicubic", "bicubic"),
  ],
)
def test_pictures_are_prepared_as_the_checkpoint_says(
  gemma1, tokenizer, pictures, monkeypatch, metadata, given, wanted
):
  seen = {}

  def decoded(model, params, batch, **_):
    seen.update(batch)
    nothing = np.zeros((len(batch["text"]), 1), np.int32)
    return types.SimpleNamespace(tokens=nothing, num_tokens=nothing[:, 0])

  monkeypatch.setattr(decode, "generate", decoded)
  _, model, flat = gemma1
  paligemma.generate(
    model.clone(metadata=metadata),
    tree.unflatten(flat),
    tokenizer,
    pictures[:1],
    "what",
    **({"preprocessing": given} if given else {}),
  )
  expected = image_lib.PREPROCESSING[wanted](pictures[0], (RES, RES))
  np.testing.assert_array_equal(seen["image"], expected[None])


def test_public_names():
  assert paligemma.__all__ == [
    "Tokenizer",
    "enable_lora",
    "generate",
    "load",
    "load_adapter",
    "load_mask_codec",
    "merge_lora",
    "save",
    "save_adapter",
  ]
  for name in paligemma.__all__:
    assert getattr(paligemma, name).__doc__


@pytest.mark.parametrize("which", ["gemma1", "gemma2"])
def test_the_model_is_read_off_its_arrays(request, which):
  path, expected, flat = request.getfixturevalue(which)
  model, params = paligemma.load(path)
  assert model == expected
  found = tree.flatten(params)
  assert found.keys() == flat.keys()
  for name, array in found.items():
    assert isinstance(array, jax.Array)
    assert array.dtype == jnp.float32
    np.testing.assert_array_equal(array, flat[name], err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_load_in_another_dtype(gemma1, dtype):
  path, _, flat = gemma1
  model, params = paligemma.load(path, dtype=dtype)
  assert (model.img.dtype, model.llm.dtype) == (dtype, dtype)
  table = params["llm"]["embedder"]["input_embedding"]
  assert table.dtype == dtype
  expected = flat["llm/embedder/input_embedding"].astype(dtype)
  np.testing.assert_array_equal(table, expected)
  assert params["img"]["pos_embedding"].dtype == jnp.float32


def test_a_file_in_half_precision_stays_so(gemma1, tmp_path):
  _, _, flat = gemma1
  npz.save(tmp_path / "half.npz", flat, dtype="bfloat16")
  model, params = paligemma.load(tmp_path / "half.npz")
  assert (model.img.dtype, model.llm.dtype) == ("bfloat16", "bfloat16")
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}


def argmax_loop(model, params, tok, images, prompts):
  """The definition: the whole sequence anew for every token, no cache."""
  room = 32
  rows = [sequence.prompt(tok, prompt, room) for prompt in prompts]
  text, mask_ar, valid = (
    np.stack([row[key] for row in rows])
    for key in ("text", "mask_ar", "mask_input")
  )
  pixels = np.stack(
    [image_lib.to_model_range(image_lib.resize(x, (RES, RES))) for x in images]
  )

  @jax.jit
  def forward(text, valid):
    return model.apply(
      {"params": params}, pixels, text, mask_ar, input_mask=valid
    )[0]

  each = np.arange(len(prompts))
  answers = [[] for _ in prompts]
  for _ in range(LIMIT):
    length = valid.sum(axis=1)
    logits = np.asarray(forward(text, valid))[each, length - 1]
    chosen = logits.argmax(axis=-1)
    text[each, length], valid[each, length] = chosen, True
    for answer, token in zip(answers, chosen, strict=True):
      answer.append(int(token))
  return [tok.decode(answer) for answer in answers]


@pytest.fixture(scope="module")
def answers(gemma1, tokenizer, pictures):
  """What the model of gemma1 says about each picture."""
  return paligemma.generate(
    *paligemma.load(gemma1[0]),
    tokenizer,
    pictures,
    list(PROMPTS),
    max_decode_len=LIMIT,
  )


def test_generate_is_the_argmax_loop(gemma1, tokenizer, pictures, answers):
  model, params = paligemma.load(gemma1[0])
  assert answers == argmax_loop(model, params, tokenizer, pictures, PROMPTS)
  assert len(set(answers)) > 1


def test_gemma2_generates_as_the_argmax_loop(gemma2, tokenizer, pictures):
  model, params = paligemma.load(gemma2[0])
  found = paligemma.generate(
    model, params, tokenizer, pictures, list(PROMPTS), max_decode_len=LIMIT
  )
  assert found == argmax_loop(model, params, tokenizer, pictures, PROMPTS)


def test_layers_apart_answer_alike(
  gemma1, tokenizer, pictures, answers, tmp_path
):
  npz.save(tmp_path / "stacked.npz", gemma1[2])
  stacked = npz.open(tmp_path / "stacked.npz").leaves
  loop = {n: x.read() for n, x in leaves.unstack_layers(stacked).items()}
  npz.save(tmp_path / "apart.npz", loop)
  model, params = paligemma.load(tmp_path / "apart.npz")
  assert not model.llm.scan
  assert not model.img.scan
  assert "0" in params["llm"]["layers"]
  found = paligemma.generate(
    model, params, tokenizer, pictures, list(PROMPTS), max_decode_len=LIMIT
  )
  assert found == answers


def test_batches_of_any_size_answer_alike(gemma1, tokenizer, pictures, answers):
  found = paligemma.generate(
    *paligemma.load(gemma1[0]),
    tokenizer,
    pictures,
    list(PROMPTS),
    max_decode_len=LIMIT,
    batch_size=2,  # the last batch is padded
  )
  assert found == answers


def test_a_picture_may_come_in_any_form(
  gemma1, tokenizer, pictures, answers, tmp_path
):
  file = io.BytesIO()
  Image.fromarray(pictures[1]).save(file, format="PNG")
  path = tmp_path / "a.png"
  path.write_bytes(file.getvalue())
  found = paligemma.generate(
    *paligemma.load(gemma1[0]),
    tokenizer,
    [str(path), path, file.getvalue(), pictures[1], pictures[1]],
    PROMPTS[1],  # one for all
    max_decode_len=LIMIT,
  )
  assert found == [answers[1]] * 5


def test_sampling_draws_anew_for_every_picture(gemma1, tokenizer, pictures):
  def sample(seed):
    return paligemma.generate(
      *paligemma.load(gemma1[0]),
      tokenizer,
      [pictures[0]] * 3,
      "what",
      max_decode_len=LIMIT,
      sampler="temperature",
      rng=jax.random.key(seed),
      batch_size=2,
    )

  assert len(set(sample(0))) == 3
  assert sample(0) == sample(0)
  assert sample(0) != sample(1)


def test_nothing_to_answer(gemma1, tokenizer):
  assert paligemma.generate(*paligemma.load(gemma1[0]), tokenizer, [], []) == []


@pytest.mark.parametrize(
  ("images", "prompts", "arguments", "message"),
  [
    (["a.png"], ["a", "b"], {}, "1 images but 2 prompts; give one prompt per"),
    (["no.png"], "a", {}, "^no.png: cannot read image: No such file"),
    ([b"<html>"], "a", {}, "^image: not a readable JPEG, PNG or WebP image"),
    (
      [np.zeros((7, 5), np.uint8)],
      "a",
      {},
      r"image array is uint8\[7, 5\], expected uint8\[H, W, 3\]",
    ),
    ([np.zeros((7, 5, 3))], "a", {}, r"image array is float64\[7, 5, 3\]"),
    (
      [np.zeros((7, 5, 3), np.uint8)],
      "a",
      {"sampler": "nucleos"},
      'unknown sampler "nucleos".*Did you mean "nucleus"',
    ),
    (
      [np.zeros((7, 5, 3), np.uint8)],
      "a",
      {"sampler": "nucleus"},
      "give generate an rng",
    ),
  ],
)
def test_what_is_wrong_is_said(
  gemma1, tokenizer, images, prompts, arguments, message
):
  model, params = paligemma.load(gemma1[0])
  with pytest.raises(ValueError, match=message) as caught:
    paligemma.generate(model, params, tokenizer, images, prompts, **arguments)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    (
      "llm/embedder/input_embedding",
      "part.npz: cannot tell the sizes of the model, missing: llm/embedder/in",
    ),
    (
      "img/head/",
      "part.npz: does not fit the model, 2 leaves differ: "
      r"img/head/bias: missing, expected \(16,\); img/head/kernel: missing",
    ),
    ("img/pos_embedding", "1 leaves differ: img/pos_embedding: missing"),
  ],
)
def test_a_file_that_is_no_paligemma(gemma1, tmp_path, name, message):
  flat = {n: x for n, x in gemma1[2].items() if not n.startswith(name)}
  npz.save(tmp_path / "part.npz", flat)
  with pytest.raises(ValueError, match=message) as caught:
    paligemma.load(tmp_path / "part.npz")
  assert str(caught.value).startswith(str(tmp_path))


def test_a_file_with_more_than_a_paligemma(gemma1, tmp_path):
  path = tmp_path / "more.npz"
  npz.save(path, {**gemma1[2], "img/cls": np.zeros((1, 1, 12), np.float32)})
  with pytest.raises(ValueError, match="img/cls: unexpected, found"):
    paligemma.load(path)
