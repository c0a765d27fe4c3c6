"""Captions are cut into words and scored as by pycocoevalcap, in Java."""

import shutil

import numpy as np
import pytest

from paligemma.metrics import captions, ptb_tokenizer
from tests.goldens.captions import adversarial_captions

pytest.importorskip("pycocoevalcap")
if shutil.which("java") is None:
  pytest.skip("PTBTokenizer needs Java", allow_module_level=True)

from tests.goldens.captions import make_captions

NUMBER = 40_000
IMAGES = 10_000
BOUND = 1e-9  # of scores up to 10, in float64


def test_words():
  texts = adversarial_captions.captions(101, NUMBER)
  expected = make_captions.tokenize(texts)
  wrong = [
    (text, words, found)
    for text, words in zip(texts, expected, strict=True)
    if (found := ptb_tokenizer.tokenize(text)) != words
  ]
  assert not wrong, wrong[:5]


def test_scores():
  predictions, references = make_captions.corpus(103, IMAGES)
  scores, _ = make_captions.score(
    [ptb_tokenizer.tokenize(text) for text in predictions],
    [[ptb_tokenizer.tokenize(t) for t in texts] for texts in references],
  )
  examples = [{"suffix": texts} for texts in references]
  found = captions.Captions()(predictions, examples)
  for name, value in scores.items():
    assert found[name] == pytest.approx(value, abs=BOUND), name


def test_the_original_cider():
  """pycocoevalcap's with neither clipping nor penalty, as pyciderevalcap."""
  from pycocoevalcap.cider import cider_scorer

  predictions, references = make_captions.corpus(107, 300)
  tokenize = ptb_tokenizer.tokenize
  scorer = cider_scorer.CiderScorer(sigma=np.inf)
  for text, theirs in zip(predictions, references, strict=True):
    scorer += (tokenize(text), [tokenize(t) for t in theirs])
  source = cider_scorer.CiderScorer.compute_cider
  # min(ours, theirs) is the clipping, and the module's only use of min
  source.__globals__["min"] = lambda ours, theirs: ours
  try:
    expected, _ = scorer.compute_score()
  finally:
    del source.__globals__["min"]
  examples = [{"suffix": texts} for texts in references]
  found = captions.Captions()(predictions, examples)
  assert found["cider_unclipped"] == pytest.approx(expected, abs=BOUND)
  assert abs(found["cider"] - expected) > 0.1
