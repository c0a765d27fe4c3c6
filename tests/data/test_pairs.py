"""Images with captions: which caption, its tokens, patches of any aspect."""

import itertools
import pathlib
import re

import numpy as np
import pytest

from paligemma.data import naflex
from paligemma.data.pairs import Pairs
from paligemma.data.siglip_tokenizer import SiglipTokenizer

TOKENIZER = (
  pathlib.Path(__file__).parents[2] / "paligemma/assets/tiny_tokenizer.model"
)
IMAGE = np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)
CAPTIONS = ["a red star", "one star", "a star in red"]


@pytest.fixture(scope="module")
def tok():
  return SiglipTokenizer(TOKENIZER)


@pytest.fixture
def make(tok):
  def make(**fields):
    values = {"res": 28, "text_len": 7, "vocab_size": 1792, "train": True}
    return Pairs(tok, **values | fields)

  return make


def example(**fields):
  return {"image": IMAGE, "_where": "a.jsonl:3", **fields}


def of_epoch(pairs, epoch, index=4, seed=0):
  numbered = example(captions=CAPTIONS, _index=index, _epoch=epoch)
  return pairs(numbered, np.random.default_rng(seed))["text"].tolist()


def test_a_caption_is_lowered_and_ends_with_eos(make, tok):
  row = make()(example(suffix="A Red Star"), np.random.default_rng(0))
  assert row.keys() == {"image", "text"}
  assert row["image"].shape == (28, 28, 3)
  (expected,), _ = tok.encode(["a red star"], 7)
  np.testing.assert_array_equal(row["text"], expected)
  assert row["text"].dtype == np.int32


def test_every_caption_once_in_as_many_epochs(make, tok):
  pairs = make(text_len=16)
  all_three = tok.encode(CAPTIONS, 16)[0].tolist()
  orders = set()
  for index in range(20):
    drawn = [of_epoch(pairs, epoch, index) for epoch in range(6)]
    for turn in (drawn[:3], drawn[3:]):
      assert sorted(turn) == sorted(all_three)
      orders.add(tuple(map(all_three.index, turn)))
  assert orders == set(itertools.permutations(range(3)))
  # It is a matter of index and epoch, whatever was drawn before.
  assert of_epoch(pairs, 1, seed=1) == of_epoch(pairs, 1, seed=2)


def test_what_ops_write_counts(make, tok):
  def write(example, rng):
    return {**example, "suffix": "one star"}

  row = make(ops=(write,))(example(captions=CAPTIONS), np.random.default_rng(0))
  np.testing.assert_array_equal(row["text"], tok.encode(["one star"], 7)[0][0])


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (
      {"prefix": "caption en"},
      'a.jsonl:3: expected a caption under "suffix", or a list of captions '
      'under "captions", found image, prefix',
    ),
    (
      {"captions": []},
      "a.jsonl:3: expected a list of texts, one at least under "
      '"captions", found []',
    ),
    (
      {"captions": ["a", 3]},
      "a.jsonl:3: expected a list of texts, one at least under "
      "\"captions\", found ['a', 3]",
    ),
    ({"suffix": 3}, 'a.jsonl:3: expected a text under "suffix", found 3'),
    (
      {"suffix": " "},
      'a.jsonl:3: the caption "" is empty for the text tower',
    ),
    (
      {"suffix": "a \ud800"},
      'a.jsonl:3: the caption "a \\ud800" is not valid Unicode',
    ),
    (
      {"suffix": "a red star on a blue square"},
      'a.jsonl:3: the caption "a red star on a blue square" is longer than the '
      "7 tokens of the text tower, eos among them; shorten it, or "
      'too_long="truncate" cuts it',
    ),
  ],
)
def test_a_caption_that_cannot_be_used_is_one_line(make, fields, message):
  with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
    make()(example(**fields), np.random.default_rng(0))


def test_a_token_beyond_the_table_is_refused(make):
  with pytest.raises(ValueError, match=r"beyond the 3 rows of the text tower$"):
    make(vocab_size=3)(example(suffix="star"), np.random.default_rng(0))


def test_a_long_caption_is_cut_if_told(make):
  pairs = make(too_long="truncate")
  for text, cut in (("star", 0), ("a red star on a blue square", 1)):
    row = pairs(example(suffix=text), np.random.default_rng(0))
    assert row["truncated"] == cut
    assert 1 in row["text"]  # eos, also of the one that is cut


def test_a_region_is_described_and_found(make, tok):
  """A picture of 30 x 50 pixels: 15 and 25 are locations 512, halves even."""
  item = {"box": [0, 0, 15, 25], "label": "A red Star"}
  pairs = make(regions=True, text_len=24)
  arrays = pairs(
    example(suffix="one star", objects=[item]), np.random.default_rng(0)
  )
  label, box = (
    tok.encode([text], 24)[0][0].tolist()
    for text in ("a red star", "0 0 512 512")
  )
  label, box = (ids[: ids.index(1)] for ids in (label, box))
  for i, (given, learned) in enumerate(((label, box), (box, label))):
    ids = [*given, *learned, 1]
    assert arrays["regions"][i].tolist() == ids + [0] * (24 - len(ids))
    expected = np.zeros(24, int)
    expected[len(given) : len(ids)] = 1
    np.testing.assert_array_equal(arrays["regions_loss"][i], expected)


def test_of_several_regions_each_is_drawn_and_none_is_learned_of_none(make):
  pairs = make(regions=True, text_len=24)
  items = [{"box": [0, 0, 9 + i, 9], "label": "star"} for i in range(2)]
  drawn = {
    pairs(example(suffix="star", objects=items), np.random.default_rng(seed))[
      "regions"
    ].tobytes()
    for seed in range(9)
  }
  assert len(drawn) == 2
  for objects in (None, []):
    without = example(suffix="star", objects=objects)
    arrays = pairs(without, np.random.default_rng(0))
    assert not arrays["regions_loss"].any()
  padding = pairs.padding()
  assert {n: x.shape for n, x in padding.items()} == {
    n: x.shape for n, x in arrays.items()
  }


@pytest.mark.parametrize(
  ("item", "message"),
  [
    ({"box": [0, 0, 9], "label": "star"}, 'object 0 of "objects" is'),
    ({"box": [0, 0, 9, 9], "label": " "}, 'the label "" is empty'),
    (
      {"box": [0, 0, 9, 9], "label": "a red star"},
      'the label with its box "a red star" is longer than the 7 tokens',
    ),
  ],
)
def test_a_region_that_cannot_be_used_is_one_line(make, item, message):
  pairs = make(regions=True)
  with pytest.raises(ValueError, match=f"^a.jsonl:3: {re.escape(message)}"):
    pairs(example(suffix="star", objects=[item]), np.random.default_rng(0))


def test_a_long_region_is_cut_if_told(make):
  pairs = make(regions=True, too_long="truncate")
  item = {"box": [0, 0, 9, 9], "label": "a red star"}
  arrays = pairs(
    example(suffix="star", objects=[item]), np.random.default_rng(0)
  )
  assert arrays["truncated"] == 1
  assert (arrays["regions"][:, -1] == 1).all()


def test_for_evaluation_there_is_the_image_alone(make):
  pairs = make(train=False)
  assert pairs(example(), np.random.default_rng(0)).keys() == {"image"}
  assert pairs.padding().keys() == {"image"}


def test_a_naflex_keeps_the_aspect_ratio(make):
  pairs = make(patch_size=4, max_patches=11)
  row = pairs(example(suffix="star"), np.random.default_rng(0))
  rows, columns = naflex.grid((30, 50), 4, 11)
  assert (rows, columns) == (2, 4)
  assert row["type"].tolist() == 8 * [1] + 3 * [0]
  assert row["yidx"].max() == 1 and row["xidx"].max() == 3
  assert row["patches"].shape == (11, 48)
  padding = pairs.padding()
  assert {k: (v.shape, v.dtype) for k, v in padding.items()} == {
    k: (v.shape, v.dtype) for k, v in row.items()
  }
  assert not any(x.any() for x in padding.values())
