"""Scores of captions: hand-made, and those of pycocoevalcap, run once."""

import collections
import json
import math
import pathlib

import numpy as np
import pytest

from paligemma.metrics import captions

GOLDEN = pathlib.Path(__file__).parents[1] / "goldens/captions/captions.json"
CORPORA = json.loads(GOLDEN.read_text())["corpora"]


@pytest.mark.parametrize("corpus", CORPORA, ids=["one", "two", "many"])
def test_equals_pycocoevalcap(corpus):
  examples = [{"suffix": texts} for texts in corpus["references"]]
  metric = captions.Captions()
  rows = metric.rows(corpus["predictions"], examples)
  scores = metric.reduce(rows)
  for name, value in corpus["scores"].items():
    assert scores[name] == pytest.approx(value, rel=1e-12, abs=1e-12), name
  assert scores["num"] == len(rows)
  each = {
    "cider": captions.ciders(*_corpus(rows)),
    "rouge": [row.rouge for row in rows],
  }
  for name, values in each.items():
    np.testing.assert_allclose(values, corpus["each"][name], 1e-12, 1e-12)


def test_the_corpora_are_neither_all_right_nor_all_wrong():
  for name, value in CORPORA[-1]["scores"].items():
    assert 0.2 < value < (3 if name == "cider" else 0.8), name


def test_ngrams():
  counts = captions.count_ngrams(" a b\xa0a  b a ")
  assert counts == {
    ("a",): 3,
    ("b",): 2,
    ("a", "b"): 2,
    ("b", "a"): 2,
    ("a", "b", "a"): 2,
    ("b", "a", "b"): 1,
    ("a", "b", "a", "b"): 1,
    ("b", "a", "b", "a"): 1,
  }
  assert captions.count_ngrams("") == {}


def test_bleu():
  # Papineni's example: "the" seven times, of which a reference has two.
  statistics = captions.bleu_counts(
    captions.count_ngrams("the the the the the the the"),
    [
      captions.count_ngrams("the cat is on the mat"),
      captions.count_ngrams("there is a cat on the mat"),
    ],
  )
  assert statistics == captions.BleuCounts(7, 7, (2, 0, 0, 0), (7, 6, 5, 4))
  assert captions.bleu([statistics])[0] == pytest.approx(2 / 7)


def test_bleu_adds_up_before_it_divides_and_penalizes_short_captions():
  counts = [
    captions.BleuCounts(2, 4, (2, 1, 0, 0), (2, 1, 0, 0)),
    captions.BleuCounts(3, 3, (1, 0, 0, 0), (3, 2, 1, 0)),
  ]
  penalty = math.exp(1 - 7 / 5)
  found = captions.bleu(counts)
  assert found[0] == pytest.approx(penalty * 3 / 5)
  assert found[1] == pytest.approx(penalty * math.sqrt(3 / 5 * 1 / 3))
  assert found[2] < 1e-4


@pytest.mark.parametrize(
  ("lengths", "expected"), [((3, 8), 3), ((7, 3), 3), ((7, 4), 4), ((9, 1), 9)]
)
def test_bleu_takes_the_nearest_reference_length(lengths, expected):
  references = [captions.count_ngrams("a " * n) for n in lengths]
  found = captions.bleu_counts(captions.count_ngrams("a a a a a"), references)
  expected = min(lengths, key=lambda n: (abs(n - 5), n))
  assert found.reference_length == expected


@pytest.mark.parametrize(
  ("a", "b", "expected"),
  [
    ("abcbdab", "bdcaba", 4),
    ("", "abc", 0),
    ("abc", "", 0),
    ("abc", "abc", 3),
    ("abc", "cba", 1),
    ("aab", "ab", 2),
  ],
)
def test_common_subsequence(a, b, expected):
  assert captions.common_subsequence(a, b) == expected


def test_rouge():
  # Precision 2/3 from the first reference, recall 1/2 from the second.
  found = captions.rouge_l("a b c", ["b x y z c", "a z"])
  assert found == pytest.approx((1 + 1.44) * 2 / 3 / 2 / (1 / 2 + 1.44 * 2 / 3))
  assert captions.rouge_l("a b", ["c d", "e"]) == 0.0
  assert captions.rouge_l("", ["a", ""]) == 1.0
  assert captions.rouge_l("", ["a"]) == 0.0


def ciders(predictions, references, **options):
  return captions.ciders(
    [captions.count_ngrams(p) for p in predictions],
    [[captions.count_ngrams(r) for r in theirs] for theirs in references],
    **options,
  )


def _corpus(rows):
  return [row.prediction for row in rows], [row.references for row in rows]


def test_cider_of_captions_that_are_their_references():
  # Four words each, all of their own: the cosine is 1 for n = 1 to 4.
  texts = ["a b c d", "e f g h", "i j k l"]
  assert ciders(texts, [[t] for t in texts]) == pytest.approx([10, 10, 10])


def test_cider_by_hand():
  # "a" is in both images' references: log(2/2) = 0. All else is in one.
  references = [["a b", "a c"], ["a d d"]]
  found = ciders(["a b", "d d d"], references)
  # n=1: "b" alone weighs: cosine 1 with the first reference, 0 with the second;
  # n=2: the same for "a b"; n=3 and 4: none.
  assert found[0] == pytest.approx(10 * (1 / 4 + 1 / 4) / 2)
  # n=1: three "d" clipped to two: 2*2 / (3*2). n=2: two "d d" clipped to one:
  # 1*1 / (2*sqrt(2)), as the reference has "a d", too. n=3: none in common.
  # Runs of two words: 2 and 2, no penalty.
  assert found[1] == pytest.approx(10 / 4 * (2 / 3 + 1 / (2 * math.sqrt(2))))
  plain = ciders(["a b", "d d d"], references, clipped=False)
  assert plain[0] == pytest.approx(found[0])
  assert plain[1] == pytest.approx(10 / 4 * (1 + 2 / (2 * math.sqrt(2))))


def test_cider_penalizes_another_length():
  references = [["a b"], ["x y"]]
  (found, _), (plain, _) = (
    ciders(["a b c d e", "x"], references, clipped=clipped)
    for clipped in (True, False)
  )
  # Four runs of two words, where the reference has one.
  assert found == pytest.approx(plain * math.exp(-(3**2) / (2 * 6**2)))


def test_cider_of_one_image_is_zero():
  assert ciders(["a b"], [["a b"]]) == [0.0]


def test_a_resample_is_a_corpus_of_its_own():
  metric = captions.Captions()
  predictions = ["a red car", "a blue car", "a dog"]
  references = ["a red bus", "a blue bus", "a dog and a cat"]
  examples = [{"suffix": text} for text in references]
  rows = metric.rows(predictions, examples)
  chosen = [2, 0, 2]
  again = metric.reduce([rows[i] for i in chosen])
  assert again == metric(
    [predictions[i] for i in chosen], [examples[i] for i in chosen]
  )
  # What was in one of three references is in two of three, or the other way.
  assert again["cider"] != pytest.approx(
    np.mean([captions.ciders(*_corpus(rows))[i] for i in chosen])
  )


def test_options_and_keys():
  scores = captions.Captions()(
    ["A dog."], [{"answers": ("a dog", "the dog")}], answer_key="answers"
  )
  assert list(scores) == [
    "cider",
    "cider_unclipped",
    *(f"bleu-{n}" for n in (1, 2, 3, 4)),
    "rouge",
    "num",
  ]
  assert scores["rouge"] == 1.0
  assert all(isinstance(value, float) for value in scores.values())


@pytest.mark.parametrize("bad", [None, [], [7], {"a": "b"}, 1.5])
def test_a_caption_that_is_no_text_is_named(bad):
  examples = [{"suffix": "a"}, {"suffix": bad, "_where": "x.jsonl:2"}]
  with pytest.raises(ValueError, match=r'^x.jsonl:2: "suffix" is .*expected'):
    captions.Captions()(["a", "b"], examples)


def test_the_order_of_captions_does_not_matter():
  metric = captions.Captions()
  corpus = CORPORA[-1]
  examples = [{"suffix": texts} for texts in corpus["references"]]
  rows = metric.rows(corpus["predictions"], examples)
  shuffled = [rows[i] for i in np.random.default_rng(7).permutation(len(rows))]
  assert metric.reduce(shuffled) == metric.reduce(rows)


def test_records_hold_what_they_say():
  (row,) = captions.Captions().rows(["A man!"], [{"suffix": ["a man", "x"]}])
  assert row.prediction == collections.Counter(
    {("a",): 1, ("man",): 1, ("a", "man"): 1}
  )
  assert [len(r) for r in row.references] == [3, 1]
  assert row.bleu.length == row.bleu.reference_length == 2
