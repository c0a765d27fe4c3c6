import dataclasses

import jax
import numpy as np
import pytest

from paligemma import evals
from paligemma.evals import perplexity


@pytest.fixture(scope="module")
def evaluator(examples, supervised):
  return evals.Perplexity("pplx", examples, supervised, batch_size=4)


def assert_same(scores, others):
  assert scores.keys() == others.keys()
  for key in scores:
    assert scores[key] == pytest.approx(others[key], rel=1e-5), key


@pytest.fixture(scope="module")
def expected(examples, supervised, model, params):
  """One example at a time, cut to its length, summed by NumPy."""
  nll, count = [], []
  for example in examples:
    row = supervised(example, np.random.default_rng(0))
    text = row["text"][row["mask_input"]]
    mask_ar = row["mask_ar"][: len(text)]
    logits, _ = model.apply(
      {"params": params},
      row["image"][None],
      text[None, :-1],
      mask_ar[None, :-1],
    )
    log_probs = np.asarray(jax.nn.log_softmax(logits[0]))
    answer = mask_ar[1:].astype(bool)
    chosen = log_probs[np.arange(len(text) - 1), text[1:]]
    nll.append(-chosen[answer].sum(dtype=np.float64))
    count.append(answer.sum())
  assert len(set(count)) > 1  # else the two means are the same
  nll, count = np.array(nll), np.array(count)
  return {
    "perplexity": np.exp(nll.sum() / count.sum()),
    "nll_per_token": nll.sum() / count.sum(),
    "nll_per_example": np.mean(nll / count),
    "num_tokens": count.sum(),
    "num_examples": 11,
  }


def test_definitions(evaluator, model, params, one_device, expected):
  assert_same(evaluator.run(model, params, one_device), expected)


@pytest.mark.parametrize("batch_size", [1, 11])
def test_batch_size_and_padding_change_nothing(
  evaluator, model, params, one_device, expected, batch_size
):
  other = dataclasses.replace(evaluator, batch_size=batch_size)
  assert_same(other.run(model, params, one_device), expected)


def test_sharded_is_single_device(
  evaluator, model, params, eight_devices, expected
):
  other = dataclasses.replace(evaluator, batch_size=8)
  assert_same(other.run(model, params, eight_devices), expected)


def test_of_uniform_logits_it_is_the_vocabulary(
  evaluator, model, params, one_device, tokenizer
):
  zeros = jax.tree.map(np.zeros_like, params)
  scores = evaluator.run(model, zeros, one_device)
  assert scores["perplexity"] == pytest.approx(tokenizer.vocab_size, rel=1e-5)


def test_limit(evaluator, model, params, one_device):
  limited = dataclasses.replace(evaluator, limit=4)
  cut = dataclasses.replace(evaluator, source=evaluator.source[:4])
  scores = limited.run(model, params, one_device)
  assert scores == cut.run(model, params, one_device)
  assert scores["num_examples"] == 4


def test_running_again_compiles_nothing(evaluator, model, params, one_device):
  evaluator.run(model, params, one_device)
  compiled = perplexity._token_sums._cache_size()
  evaluator.run(model.clone(), params, one_device)
  assert perplexity._token_sums._cache_size() == compiled


def test_missing_mask_is_an_error(
  evaluator, prompts, model, params, one_device
):
  other = dataclasses.replace(evaluator, preprocess=prompts)
  with pytest.raises(ValueError, match='"pplx": batches have no mask_loss'):
    other.run(model, params, one_device)


@dataclasses.dataclass(frozen=True)
class Unsupervised:
  """A preprocess that supervises no token."""

  preprocess: object

  def __call__(self, example, rng):
    row = self.preprocess(example, rng)
    return row | {"mask_loss": 0 * row["mask_loss"]}

  def padding(self):
    return self.preprocess.padding()


def test_no_supervised_token_is_an_error(evaluator, model, params, one_device):
  other = dataclasses.replace(
    evaluator, preprocess=Unsupervised(evaluator.preprocess)
  )
  with pytest.raises(ValueError, match='"pplx": no supervised token in 11'):
    other.run(model, params, one_device)
