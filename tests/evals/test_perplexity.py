import dataclasses
import json

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
  """One example at a time, summed by NumPy over its answer."""
  forward = jax.jit(model.apply)
  nll, count = [], []
  for example in examples:
    row = supervised(example, np.random.default_rng(0))
    inputs = {key: row[key][None, :-1] for key in row if key != "image"}
    logits, _ = forward(
      {"params": params},
      row["image"][None],
      inputs["text"],
      inputs["mask_ar"],
      input_mask=inputs["mask_input"],
    )
    log_probs = np.asarray(jax.nn.log_softmax(logits[0]))
    is_answer = (row["mask_ar"] == 1) & row["mask_input"]
    at = np.flatnonzero(is_answer[1:])
    nll.append(-log_probs[at, row["text"][1:][at]].sum(dtype=np.float64))
    count.append(len(at))
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


class Damaged(list):
  """Examples of which the fourth and the last cannot be read."""

  def __getitem__(self, index):
    if index in (3, 10):
      raise ValueError(f"x.jsonl:{index + 1}: no image")
    return super().__getitem__(index)


def test_a_bad_example_is_an_error_or_left_out(
  evaluator, model, params, one_device, examples, caplog
):
  damaged = dataclasses.replace(evaluator, source=Damaged(examples))
  with pytest.raises(ValueError, match=r"^x.jsonl:4: no image$"):
    damaged.run(model, params, one_device)
  skipping = dataclasses.replace(damaged, on_bad="skip")
  found = skipping.run(model, params, one_device)
  assert found.pop("num_bad") == 2
  assert found["num_examples"] == 9
  assert "skipped a bad example: x.jsonl:11: no image" in caplog.text
  good = [x for i, x in enumerate(examples) if i not in (3, 10)]
  alone = dataclasses.replace(evaluator, source=good)
  assert_same(found, alone.run(model, params, one_device))


def test_the_nll_of_each_example_is_written(
  evaluator, model, params, one_device, examples, tmp_path
):
  skipping = dataclasses.replace(
    evaluator, source=Damaged(examples), on_bad="skip"
  )
  skipping.run(model, params, one_device, output_dir=tmp_path)
  lines = (tmp_path / "pplx/nll.jsonl").read_text().splitlines()
  rows = list(map(json.loads, lines))
  assert [row["index"] for row in rows] == [0, 1, 2, 4, 5, 6, 7, 8, 9]
  whole = evaluator.rows(model, params, one_device)
  for row in rows:
    expected = whole[row["index"]]
    assert row["tokens"] == expected["tokens"]
    assert row["nll"] == pytest.approx(expected["nll"], rel=1e-5)


def test_padding_of_the_last_batch_changes_nothing(
  evaluator, model, params, one_device
):
  whole = dataclasses.replace(evaluator, batch_size=11)
  assert_same(
    evaluator.run(model, params, one_device),
    whole.run(model, params, one_device),
  )


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
