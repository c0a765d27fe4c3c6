"""The tokenizer and the image processor of a folder, opened by transformers."""

import random

import numpy as np
import pytest

import paligemma
from paligemma.data import tokenizer as tokenizer_lib

transformers = pytest.importorskip("transformers")

ASSETS = next(iter(paligemma.__path__)) + "/assets"
# transformers 5.23 itself, of NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")


@pytest.fixture(scope="module")
def tokenizer():
  return tokenizer_lib.Tokenizer(f"{ASSETS}/tiny_tokenizer.model")


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
  path = tmp_path_factory.mktemp("hf") / "tiny"
  model, params = paligemma.load(f"{ASSETS}/tiny.npz")
  paligemma.save(path, model, params, format="huggingface", tokenizer=tokenizer)
  return path


@pytest.fixture(params=["AutoProcessor", "PaliGemmaProcessor"])
def processor(folder, request, caplog):
  transformers.logging.enable_propagation()
  try:
    yield getattr(transformers, request.param).from_pretrained(folder)
  finally:
    transformers.logging.disable_propagation()
  assert caplog.messages == []


def texts():
  rng = random.Random(0)
  parts = [*"abc  de\n0f0é▁<🙂", "<loc0003>", "<seg127>", " the", "  "]
  for _ in range(100):
    yield "".join(rng.choices(parts, k=rng.randrange(30)))
  yield from ("what digit is this", "detect red circle ; blue", "")


def test_sequences_are_ours(processor, tokenizer):
  image = np.zeros((70, 91, 3), np.uint8)
  for prefix in texts():
    for suffix in (None, "<loc0001><seg000> two"):
      ids = processor(images=image, text="<image>" + prefix, suffix=suffix)
      expected = [
        *16 * [tokenizer.vocab_size],  # 56 pixels, patches of 14
        *tokenizer.encode(prefix, bos=True),
        *tokenizer.encode("\n"),
        *([] if suffix is None else tokenizer.encode(suffix, eos=True)),
      ]
      assert list(ids["input_ids"][0]) == expected, repr(prefix)


def test_a_message_is_a_prompt(processor, tokenizer):
  """As servers of chat completions ask, with one picture or two."""
  for count in (1, 2):
    image = {"type": "image", "image": np.zeros((70, 91, 3), np.uint8)}
    text = {"type": "text", "text": "detect cat ; dog"}
    message = {"role": "user", "content": [text, *[image] * count]}
    (ids,) = processor.apply_chat_template([message], tokenize=True)
    expected = [
      *16 * count * [tokenizer.vocab_size],
      *tokenizer.encode("detect cat ; dog\n", bos=True),
    ]
    assert list(ids) == expected
  with pytest.raises(Exception, match="PaliGemma reads one message: pictures"):
    processor.apply_chat_template([message, message], tokenize=True)


def test_text_comes_back(processor, tokenizer):
  for text in texts():
    ids = tokenizer.encode(text)
    assert processor.tokenizer.decode(ids) == tokenizer.decode(ids)


def test_pictures_have_the_side_and_range_of_the_model(processor):
  image = np.full((70, 91, 3), 255, np.uint8)
  pixels = processor(images=image, text="<image>", return_tensors="np")
  pixels = pixels["pixel_values"]
  assert pixels.shape == (1, 3, 56, 56)
  np.testing.assert_allclose(pixels, 1.0)
