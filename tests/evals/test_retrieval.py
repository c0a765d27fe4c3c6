"""Recall both ways, beside a straightforward computation of NumPy."""

import dataclasses

import numpy as np
import pytest

import paligemma
from paligemma import evals
from paligemma.evals import retrieval

TEXTS = [
  ["a photo of red", "Red circle!"],
  ["blue"],
  ["what digit is this", "digit", "this is a digit"],
  ["a segment"],
]


def unit(rng, *shape):
  z = rng.standard_normal(shape).astype(np.float32)
  return z / np.linalg.norm(z, axis=-1, keepdims=True)


def straightforward(zimg, ztxt, owner):
  """Recalls as big_vision has them: a text belongs to one image."""
  near = zimg @ ztxt.T
  by_text, by_image = (-near).argsort(axis=0), (-near).argsort(axis=1)
  scores = {}
  for k in (1, 5, 10):
    wins = owner[by_image[:, :k]] == np.arange(len(zimg))[:, None]
    scores[f"image_to_text_recall@{k}"] = wins.any(axis=1).mean()
    wins = by_text[:k] == owner
    scores[f"text_to_image_recall@{k}"] = wins.any(axis=0).mean()
  return scores


def test_recalls_are_those_of_numpy():
  rng = np.random.default_rng(0)
  zimg, ztxt = unit(rng, 37, 5), unit(rng, 101, 5)
  owner = np.concatenate([np.arange(37), rng.integers(0, 37, 64)])
  of_image, of_text = retrieval.rank_pairs(
    zimg, ztxt, [(i, j) for j, i in enumerate(owner)]
  )
  rows = [
    {
      "image_number": i,
      "text_numbers": np.flatnonzero(owner == i),
      "image_to_text": [of_image.rank[i]],
      "text_to_image": of_text.rank[owner == i],
    }
    for i in range(37)
  ]
  found = evals.Retrieval.reduce(rows)
  expected = straightforward(zimg, ztxt, owner)
  assert found == pytest.approx(
    expected | {"num_images": 37, "num_texts": 101, "num_examples": 37},
    abs=1e-6,
  )
  assert len(set(expected.values())) == 6
  assert evals.Retrieval.higher_is_better == dict.fromkeys(expected, True)


@pytest.fixture(scope="module")
def captioned(examples):
  """Four examples with their texts, those with one text as "suffix"."""
  found = []
  for example, own in zip(examples, TEXTS, strict=False):
    kept = {key: x for key, x in example.items() if key != "suffix"}
    found.append(kept | ({"captions": own} if own[1:] else {"suffix": own[0]}))
  return found


@pytest.fixture(scope="module")
def evaluator(captioned, alone, siglip_tok):
  return evals.Retrieval("val", captioned, alone, siglip_tok, batch_size=4)


def test_ranks_of_a_source(
  evaluator, siglip, one_device, siglip_tok, captioned
):
  model, params = siglip
  zimg = paligemma.embed_images(model, params, [x["image"] for x in captioned])
  flat = [text for own in TEXTS for text in own]
  ztxt = paligemma.embed_texts(model, params, siglip_tok, flat)
  owner = np.repeat(np.arange(4), [len(own) for own in TEXTS])
  found = evaluator.run(*siglip, one_device)
  assert found == pytest.approx(
    straightforward(zimg, ztxt, owner)
    | {"num_images": 4, "num_texts": 7, "num_examples": 4}
  )
  rows = evaluator.rows(*siglip, one_device)
  assert [len(row["text_to_image"]) for row in rows] == [2, 1, 3, 1]
  near = zimg @ ztxt.T
  for i, row in enumerate(rows):
    best = near[i].argmax()
    assert row["prediction"] == siglip_tok.canonicalize(flat[best])
    assert row["score"] == pytest.approx(near[i, best], abs=1e-6)
    assert row["correct"] == (owner[best] == i) == (row["image_to_text"] == [0])
    assert row["captions"] == TEXTS[i] and row["where"] == f"x.jsonl:{i + 1}"


def test_equal_images_and_texts_are_one(
  evaluator, siglip, one_device, captioned
):
  # Each caption on a line of its own, as another file, with the image again.
  lines = [
    {"image": example["image"], "suffix": text, "_where": f"y.jsonl:{text}"}
    for example, own in zip(captioned, TEXTS, strict=True)
    for text in own
  ]
  again = dataclasses.replace(evaluator, source=lines)
  rows = again.rows(*siglip, one_device)
  whole = evaluator.rows(*siglip, one_device)
  owner = np.repeat(np.arange(4), [len(own) for own in TEXTS])
  assert [row["image_to_text"] for row in rows] == [
    whole[i]["image_to_text"] for i in owner
  ]
  flat = [rank for row in whole for rank in row["text_to_image"]]
  assert [row["text_to_image"] for row in rows] == [[rank] for rank in flat]
  scores = again.reduce(rows)
  counts = [scores[f"num_{x}"] for x in ("images", "texts", "examples")]
  assert counts == [4, 7, 7]


def test_a_text_of_all_images_is_always_right(
  evaluator, siglip, one_device, captioned
):
  words = ("a", "A", "a.", "b")
  same = [
    {**x, "suffix": word} for x, word in zip(captioned, words, strict=True)
  ]
  same[3]["image"] = same[0]["image"]
  found = dataclasses.replace(evaluator, source=same).run(*siglip, one_device)
  assert found["image_to_text_recall@1"] >= 0.5
  assert (found["num_images"], found["num_texts"]) == (3, 2)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"suffix": "a"}, "4 different images and 1 different texts, expected 2"),
    ({"image": None}, "1 different images and 7 different texts, expected 2"),
  ],
)
def test_one_image_or_text_alone_is_an_error(
  evaluator, siglip, one_device, captioned, changes, message
):
  if "image" in changes:
    changes = {"image": captioned[0]["image"]}
  same = [{**x, **changes} for x in captioned]
  alone = dataclasses.replace(evaluator, source=same)
  with pytest.raises(ValueError, match=f'^evaluator "val": {message}'):
    alone.run(*siglip, one_device)


def test_missing_texts(evaluator, siglip, one_device, captioned):
  bad = [*captioned[:2], {"image": captioned[2]["image"], "_where": "x:3"}]
  with pytest.raises(
    ValueError, match=r'^x:3: expected a caption under "suffix", or a list of c'
  ):
    dataclasses.replace(evaluator, source=bad).run(*siglip, one_device)
