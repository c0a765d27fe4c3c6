"""Rows of batches; the evaluation row is blind to the answer."""

import functools
import io
import pickle
import re

import numpy as np
import pytest
from PIL import Image

from paligemma.data import image as image_lib
from paligemma.data import image_files, sequence, text_ops
from paligemma.data import preprocess as preprocess_lib

RES, TEXT_LEN = 7, 37


@pytest.fixture
def example():
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (11, 13, 3), dtype=np.uint8)
  data = io.BytesIO()
  Image.fromarray(pixels).save(data, "PNG")
  return {
    "image": data.getvalue(),
    "prefix": "what digit is this",
    "suffix": "one",
    "_where": "a.jsonl:7",
  }


@pytest.fixture
def rng():
  return np.random.default_rng(0)


def make(tokenizer, train=True, **options):
  return preprocess_lib.Preprocess(
    tokenizer, RES, TEXT_LEN, train=train, **options
  )


def test_train_row(tokenizer, example, rng):
  row = make(tokenizer)(example, rng)
  image = row.pop("image")
  assert image.shape == (RES, RES, 3)
  assert image.dtype == np.float32
  pixels = image_lib.resize(image_files.decode(example["image"]), (RES, RES))
  np.testing.assert_allclose(image, pixels / 127.5 - 1, rtol=0, atol=1e-6)
  expected = sequence.training(tokenizer, "what digit is this", "one", TEXT_LEN)
  assert row.keys() == expected.keys()
  for key, value in expected.items():
    np.testing.assert_array_equal(row[key], value)


def test_evaluation_row_never_carries_the_answer(tokenizer, example, rng):
  preprocess = make(tokenizer, train=False)
  row = preprocess(example, rng)
  assert row.keys() == {"image", "text", "mask_ar", "mask_input"}
  for suffix in ("another answer", "", 7, None):
    other = preprocess({**example, "suffix": suffix}, rng)
    for key, value in row.items():
      np.testing.assert_array_equal(other[key], value)
  del example["suffix"]
  np.testing.assert_array_equal(preprocess(example, rng)["text"], row["text"])


@pytest.mark.parametrize("name", image_lib.PREPROCESSING)
def test_resize_chooses_the_preprocessing(tokenizer, example, rng, name):
  row = make(tokenizer, resize=name)(example, rng)
  pixels = image_files.decode(example["image"])
  for other, preprocess in image_lib.PREPROCESSING.items():
    same = np.array_equal(row["image"], preprocess(pixels, (RES, RES)))
    assert same == (other == name or {other, name} == {"reference", "bilinear"})


def test_image_may_be_pixels(tokenizer, example, rng):
  row = make(tokenizer)(example, rng)
  pixels = image_files.decode(example["image"])
  again = make(tokenizer)({**example, "image": pixels}, rng)
  np.testing.assert_array_equal(again["image"], row["image"])


@pytest.mark.parametrize("name", image_lib.PREPROCESSING)
def test_frames(tokenizer, example, rng, name):
  """Three frames of three sizes, one of them encoded."""
  one = make(tokenizer, resize=name)
  several = make(tokenizer, resize=name, frames=3)
  images = [
    rng.integers(0, 256, (5, 17, 3), dtype=np.uint8),
    example["image"],
    rng.integers(0, 256, (3, 2, 3), dtype=np.uint8),
  ]
  row = several({**example, "image": images}, rng)
  assert row["image"].shape == (3, RES, RES, 3)
  assert row["image"].dtype == np.float32
  for image, frame in zip(images, row["image"], strict=True):
    alone = one({**example, "image": image}, rng)
    np.testing.assert_array_equal(frame, alone["image"])
  np.testing.assert_array_equal(row["text"], alone["text"])
  padding = several.padding()
  assert padding["image"].shape == (3, RES, RES, 3)
  assert not padding["image"].any()
  array = rng.integers(0, 256, (3, 11, 13, 3), dtype=np.uint8)
  of_array = several({**example, "image": array}, rng)
  of_list = several({**example, "image": tuple(array)}, rng)
  np.testing.assert_array_equal(of_array["image"], of_list["image"])


def test_ops_are_functions(tokenizer):
  with pytest.raises(ValueError, match=r"^ops holds 'decode', expected functi"):
    make(tokenizer, ops=("decode",))


def test_wrong_frames_are_named(tokenizer, example):
  pixels = np.zeros((11, 13, 3), np.uint8)

  def given(image, frames, match):
    row = {**example, "image": image}
    fails(make(tokenizer, frames=frames), row, match)

  expected = 'expected 3 frames under "image", found'
  given([pixels] * 2, 3, rf"{expected} 2 frames; .*`frames` of .* \(3\)")
  given(np.stack([pixels] * 5), 3, f"{expected} 5 frames;")
  given(pixels, 3, f"{expected} one image;")
  given(example["image"], 3, f"{expected} one image;")
  alone = 'expected one image under "image", found'
  given(
    [pixels] * 2, 0, rf"{alone} 2 frames; .*`frames` of the config .* \(0\)"
  )
  given(np.stack([pixels] * 2), 0, f"{alone} 2 frames;")
  given([], 0, f"{alone} 0 frames;")
  given([pixels, b"x", pixels], 3, "^a.jsonl:7, frame 1: not a readable image")
  given([pixels, pixels, 7], 3, "^a.jsonl:7, frame 2: found int, expected one")
  with pytest.raises(ValueError, match="frames is -1, expected the number of"):
    make(tokenizer, frames=-1)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("too_long", ["error", "truncate"])
def test_padding_has_the_form_of_a_row(
  tokenizer, example, rng, train, too_long
):
  preprocess = make(tokenizer, train, too_long=too_long)
  row, padding = preprocess(example, rng), preprocess.padding()
  assert row.keys() == padding.keys()
  for key in row:
    assert padding[key].shape == row[key].shape
    assert padding[key].dtype == row[key].dtype
    assert not padding[key].any()


def test_pickle(tokenizer, example, rng):
  ops = (text_ops.Format("{prefix}?"), text_ops.Lower("suffix"))
  preprocess = make(tokenizer, ops=ops)
  copy = pickle.loads(pickle.dumps(preprocess))
  row, again = preprocess(example, rng), copy(example, rng)
  np.testing.assert_array_equal(row["text"], again["text"])


def test_prepare_shows_the_answer_to_evaluators(tokenizer, example, rng):
  ops = (text_ops.Format("caption en", "it is {suffix}"),)
  prepared = make(tokenizer, train=False, ops=ops).prepare(example, rng)
  assert prepared["suffix"] == "it is one"


def fails(preprocess, example, match):
  with pytest.raises(ValueError, match=match) as info:
    preprocess(example, np.random.default_rng(0))
  assert str(info.value).startswith("a.jsonl:7")
  assert "\n" not in str(info.value)


def test_errors_name_the_place(tokenizer, example):
  preprocess = make(tokenizer)
  fails(preprocess, {**example, "image": b"x"}, "not a readable image: 1 byte")
  fails(
    preprocess,
    {**example, "prefix": "<loc0000>" * 40},
    r"prompt and answer have 42 \+ \d+ tokens, text_len 37 has room for 38",
  )
  fails(preprocess, {**example, "prefix": 7}, 'text under "prefix", found 7')
  fails(preprocess, {**example, "suffix": None}, 'under "suffix", found None')


@pytest.mark.parametrize("key", ["prefix", "suffix", "image"])
def test_missing_key_is_named(tokenizer, example, key):
  example[f"{key}es"] = example.pop(key)
  fails(
    make(tokenizer),
    example,
    rf'missing key "{key}", found .*\. Did you mean "{key}es"\?',
  )


def test_prompt_too_long_is_counted(tokenizer, example):
  example["prefix"] = "<loc0000>" * 40
  fails(
    make(tokenizer, train=False),
    example,
    "prompt has 42 tokens, text_len is 37",
  )


def test_errors_of_ops_name_the_place(tokenizer, example):
  def of(op):
    return make(tokenizer, ops=(op,))

  fails(
    of(text_ops.Format("answer en {sufix}")),
    example,
    'missing key "sufix", found image, prefix, suffix. Did you mean "suffix"',
  )
  fails(
    of(text_ops.Format("answer en {prefix")),
    example,
    'cannot fill the template "answer en {prefix"',
  )
  fails(
    of(text_ops.Choice("suffix")),
    example,
    'to choose from under "suffix", found \'o',
  )
  fails(
    of(text_ops.Choice("suffix")),
    {**example, "suffix": []},
    r'to choose from under "suffix", found \[\]',
  )
  fails(of(text_ops.Lower("prefx")), example, 'Did you mean "prefix"')


class Cut:
  """An op of a user, in a class."""

  def __call__(self, example, rng):
    return {**example, "suffix": example["suffix"][9]}


def question(example, rng):
  return {**example, "prefix": example["question"]}


HERE = re.escape(__file__)


@pytest.mark.parametrize(
  ("op", "message", "cause"),
  [
    (question, rf"op question \({HERE}:\d+\): KeyError: 'question'$", KeyError),
    (Cut(), rf"op Cut \({HERE}:\d+\): IndexError: string index", IndexError),
    (
      functools.partial(int, "three\nor four"),
      r"op partial: TypeError: int\(\) takes at most 2",
      TypeError,
    ),
    (
      lambda example, rng: float(f"a\n{300 * 'b'}"),
      rf"op .*<lambda> \({HERE}:\d+\): ValueError: could not .{{0,200}}$",
      ValueError,
    ),
    (
      lambda example, rng: None,
      "op .*<lambda> returned None, expected the example, a dict$",
      type(None),
    ),
  ],
)
def test_an_error_within_an_op_is_one_line(
  tokenizer, example, rng, op, message, cause
):
  preprocess = make(tokenizer, ops=(op,))
  with pytest.raises(ValueError, match=rf"^a\.jsonl:7: {message}") as info:
    preprocess(example, rng)
  assert "\n" not in str(info.value)
  assert isinstance(info.value.__cause__, cause)


def test_parts_that_are_no_targets_may_be_null(tokenizer, example, rng):
  row = make(tokenizer)({**example, "unsupervised": None}, rng)
  expected = make(tokenizer)(example, rng)
  np.testing.assert_array_equal(row["mask_loss"], expected["mask_loss"])


def test_unknown_options_fail_at_construction(tokenizer):
  with pytest.raises(ValueError, match='resize method "bicubik"'):
    make(tokenizer, resize="bicubik")
  with pytest.raises(ValueError, match='too_long "cut", expected one of'):
    make(tokenizer, too_long="cut")


def test_keys_of_an_example_are_shown_in_one_line(tokenizer, example):
  keys = {f"key {i}\n": i for i in range(999)}
  row = {"image": example["image"], **keys}
  with pytest.raises(
    ValueError, match='missing key "prefix", found im'
  ) as info:
    make(tokenizer)(row, np.random.default_rng(0))
  assert len(str(info.value)) < 300
  assert "\n" not in str(info.value)
