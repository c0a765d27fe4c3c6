"""The public calls: load, ask; and that all is said about a wrong one."""

import io
import random
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image

import paligemma
from paligemma import tree
from paligemma.checkpoints import leaves, npz
from paligemma.data import image as image_lib
from paligemma.data import sequence
from paligemma.decoding import decode
from paligemma.models import paligemma as paligemma_model
from tests.spelled_texts import plain_ids, random_texts

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
    "SiglipTokenizer",
    "Tokenizer",
    "classify",
    "draw",
    "embed_images",
    "embed_texts",
    "enable_lora",
    "generate",
    "load",
    "load_adapter",
    "load_mask_codec",
    "merge_lora",
    "parse",
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


def to_input(image):
  if isinstance(image, list):
    return np.stack([to_input(frame) for frame in image])
  return image_lib.to_model_range(image_lib.resize(image, (RES, RES)))


def argmax_loop(model, params, tok, images, prompts):
  """The definition: the whole sequence anew for every token, no cache."""
  room = 32
  rows = [sequence.prompt(tok, prompt, room) for prompt in prompts]
  text, mask_ar, valid = (
    np.stack([row[key] for row in rows])
    for key in ("text", "mask_ar", "mask_input")
  )
  pixels = np.stack([to_input(image) for image in images])

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


@pytest.fixture(scope="module")
def ask(gemma1, tokenizer):
  """generate of gemma1 for pictures and prompts."""
  model, params = paligemma.load(gemma1[0])

  def ask(images, prompts, **arguments):
    return paligemma.generate(
      model,
      params,
      tokenizer,
      images,
      prompts,
      max_decode_len=LIMIT,
      **arguments,
    )

  return ask


@pytest.fixture(scope="module")
def forms(pictures, tmp_path_factory):
  """The second picture in every form."""
  picture = pictures[1]
  opened = Image.fromarray(picture)
  file = io.BytesIO()
  opened.save(file, format="PNG")
  path = tmp_path_factory.mktemp("forms") / "a.png"
  path.write_bytes(file.getvalue())
  return [
    str(path),
    path,
    epath.Path(path),
    file.getvalue(),
    bytearray(file.getvalue()),
    opened,
    Image.open(path),
    picture,
    jnp.asarray(picture),
    (picture / 255).astype(np.float32),
  ]


def test_a_picture_may_come_in_any_form(ask, forms, answers):
  found = ask(forms, PROMPTS[1])  # one prompt for all
  assert found == [answers[1]] * len(forms)


def test_one_picture_need_not_be_in_a_list(ask, forms, answers):
  for picture in forms:
    assert ask(picture, PROMPTS[1]) == [answers[1]]
  assert ask(forms[0], [PROMPTS[1]]) == [answers[1]]


def test_an_array_of_pictures_is_a_list(ask, pictures, forms, answers):
  batch = np.stack([pictures[1]] * 3)
  for images in (batch, jnp.asarray(batch), tuple(batch)):
    assert ask(images, PROMPTS[1]) == [answers[1]] * 3
  paths = np.array([forms[0]] * 2)
  assert ask(paths, PROMPTS[1]) == [answers[1]] * 2


def test_several_pictures_for_one_prompt(gemma1, tokenizer, pictures, ask):
  images = [pictures[:2], pictures[2:4], [pictures[4], pictures[0]]]
  prompts = list(PROMPTS[:3])
  model, params = paligemma.load(gemma1[0])
  expected = argmax_loop(model, params, tokenizer, images, prompts)
  assert ask(images, prompts) == expected
  equal = np.stack([pictures[1], pictures[1][::-1]])
  assert ask([equal], "what") == ask([list(equal)], "what")
  assert ask(equal[None], "what") == ask([list(equal)], "what")


def test_numbers_of_pictures_may_differ(ask, pictures, answers):
  """Each prompt is answered as it would be alone, in its place."""
  a, b, c, d, e = pictures
  images = [[a, b], b, [c, a], [d], [e, a, b]]
  expected = [
    ask([image], prompt)[0]
    for image, prompt in zip(images, PROMPTS, strict=True)
  ]
  assert ask(images, list(PROMPTS)) == expected
  assert ask(images, list(PROMPTS), batch_size=1) == expected
  assert (expected[1], expected[3]) == (answers[1], answers[3])


def test_sampling_draws_anew_for_every_picture(gemma1, tokenizer, pictures):
  def sample(rng):
    return paligemma.generate(
      *paligemma.load(gemma1[0]),
      tokenizer,
      [pictures[0]] * 3,
      "what",
      max_decode_len=LIMIT,
      sampler="temperature",
      rng=rng,
      batch_size=2,
    )

  assert len(set(sample(jax.random.key(0)))) == 3
  assert sample(0) == sample(jax.random.key(0)) == sample(np.int64(0))
  assert sample(0) != sample(1)


def test_2000_prompts_have_the_ids_of_training(
  gemma1, tokenizer, monkeypatch, caplog
):
  """Those that tests/data/test_spelling.py finds there."""
  rng = random.Random(0)
  prompts = [random_texts(rng)[0] for _ in range(2000)]
  seen = []

  def nothing(model, params, batch, **_):
    seen.extend(batch["text"][batch["mask_input"] & batch["_mask"][:, None]])
    rows = len(batch["text"])
    none = np.zeros(rows, np.int32)
    return decode.Decoded(none[:, None], none[:, None], none, none)

  monkeypatch.setattr(decode, "generate", nothing)
  model, params = paligemma.load(gemma1[0])
  picture = np.zeros((5, 7, 3), np.uint8)
  paligemma.generate(model, params, tokenizer, [picture] * 2000, prompts)
  wanted = [plain_ids(tokenizer, prompt, "")[0] for prompt in prompts]
  assert [int(i) for i in seen] == [i for ids in wanted for i in ids]
  for what in ("<image>", "<bos>", "line break"):
    assert f"{what} taken off" in caplog.text


def test_nothing_to_answer(gemma1, tokenizer):
  assert paligemma.generate(*paligemma.load(gemma1[0]), tokenizer, [], []) == []


@pytest.mark.parametrize(
  ("images", "prompts", "arguments", "message"),
  [
    (["a.png"], ["a", "b"], {}, "1 images but 2 prompts; give one prompt per"),
    (["no.png"], "a", {}, "^no.png: cannot read image: No such file"),
    ("no.png", "a", {}, "^no.png: cannot read image: No such file"),
    ("http://a/b.png", "a", {}, r"^http://a/b.png: .* an address, expected "),
    (["."], "a", {}, "^.: cannot read image: Is a directory$"),
    ([b"<html>"], "a", {}, r"^images\[0\]: not a readable image: 6 bytes"),
    (
      [np.zeros((7, 5), np.int32)],
      "a",
      {},
      r"^images\[0\]: found int32\[7, 5\], expected one picture",
    ),
    (
      [np.zeros((7, 5), np.uint8), [np.zeros((7, 5)), np.full((7, 5), 255.0)]],
      "a",
      {},
      r"^images\[1\]\[1\]: floating-point values from 255 to 255, .* \[0, 1\]",
    ),
    (None, "a", {}, "^images is None, but the model has an image tower: give"),
    ([None], "a", {}, r"^images\[0\]: found NoneType, expected one picture"),
    ([[]], "a", {}, r"^images\[0\] is an empty list, expected a picture"),
    ({"a.png"}, "a", {}, r"^images\[0\]: found set, expected one picture"),
    (["no.png"], ["a <image>"], {}, r"^prompts\[0\]: <image> stands within"),
    (["no.png"], [b"a"], {}, r"^prompts\[0\] is bytes, expected a text"),
    (["no.png"], ["\ud83d"], {}, r"^prompts\[0\]: the text holds .*half a sur"),
    (["no.png"], "a", {"batch_size": -1}, "^batch_size is -1, expected 1 or m"),
    (["no.png"], "a", {"rng": "a"}, "^rng is 'a', expected a JAX key or a see"),
    ([["a", "b"]], "<image>a", {}, "begins with 1 <image>, expected 2 or none"),
    (7, "a", {}, r"^images\[0\]: found int, expected one picture"),
    ([[["a.png"]]], "a", {}, r"^images\[0\]: found a list of 1, expected one"),
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


def test_a_token_beyond_the_table_is_refused(gemma1, tokenizer, pictures):
  model, params = paligemma.load(gemma1[0])
  model = model.clone(llm=model.llm.clone(vocab_size=700))
  with pytest.raises(
    ValueError, match=r"prompts\[1\]: prompt has token \d+, beyond"
  ):
    paligemma.generate(
      model, params, tokenizer, pictures[:2], ["a", "what is at <loc1023>?"]
    )


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


BOX = "<loc0000><loc0512><loc0512><loc1023>"


def test_answers_are_parsed():
  found = paligemma.parse(f"{BOX} cat", (1023, 2046), scores=[0.5])
  assert found == [{"box": (0, 1024, 512, 2046), "label": "cat", "score": 0.5}]


def test_answers_are_drawn(tmp_path):
  """As text or as objects, with masks if there is a codec for them."""
  path = tmp_path / "a.png"
  Image.new("RGB", (640, 480), "blue").save(path)
  codec = f"{paligemma.__path__[0]}/assets/tiny_mask_codec.npz"
  codec = paligemma.load_mask_codec(codec)
  answer = BOX + "<seg001>" * 16 + " cat"
  drawn = paligemma.draw(path, answer, codec=codec, scores=[0.5])
  found = paligemma.parse(answer, (480, 640), codec=codec, scores=[0.5])
  assert found[0]["mask"].shape == (480, 640)
  again = paligemma.draw(np.asarray(Image.open(path)), found)
  np.testing.assert_array_equal(drawn, again)
  assert (np.asarray(paligemma.draw(path, answer)) != np.asarray(drawn)).any()
  assert paligemma.draw(path, "a barn").height > 480
  assert paligemma.draw(path, []).size == (640, 480)
