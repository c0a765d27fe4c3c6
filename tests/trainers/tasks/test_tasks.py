"""A config names its task, and has the keys and evaluators of that alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import common
from paligemma import evals
from trainers import tasks
from trainers.tasks import next_token


class Other(next_token.NextToken):
  """A task with an evaluator of its own."""

  evaluators = {"recall": evals.Perplexity}  # noqa: RUF012


def test_the_task_is_looked_up():
  assert tasks.of(common.defaults()) is tasks.TASKS["next_token"]
  with pytest.raises(
    ValueError, match=r'unknown task "next_tokn".*Did you mean "next_token"'
  ):
    tasks.of(ConfigDict({"task": "next_tokn"}))


def test_a_key_of_another_task_is_unknown():
  config = common.defaults("other")
  assert "label_smoothing" not in config and "llm" not in config.model
  config = ConfigDict({"task": "other", "train": {"on_bad": "skipp"}})
  common.complete(config)
  assert "texts" not in config.train


def test_an_evaluator_of_another_task_is_refused(monkeypatch):
  monkeypatch.setitem(tasks.TASKS, "other", Other())
  source = {"kind": "jsonl", "path": "a.jsonl"}
  config = ConfigDict({"evals": {"val": {"kind": "recall", "source": source}}})
  with pytest.raises(
    ValueError,
    match=r'^evals.val: kind "recall" is of task "other", but config.task is '
    '"next_token", expected one of: generate, perplexity$',
  ):
    tasks.evaluator(common.complete(config), "val")
  config.evals.val.kind = "perplexty"
  with pytest.raises(ValueError, match='Did you mean "perplexity"'):
    tasks.evaluator(config, "val")


def test_a_decoder_alone_has_a_loss_and_no_images():
  config = common.defaults()
  config.model.variant = "gemma_nano"
  model = tasks.of(config).make_model(config)
  config.batch_size, config.text_len = 3, 7
  shapes = tasks.of(config).batch_shapes(config)
  assert "image" not in shapes and shapes["text"].shape == (3, 8)
  rng = np.random.default_rng(0)
  text = rng.integers(3, 1792, (3, 8)).astype(np.int32)
  ones = np.ones_like(text)
  batch = {"text": text, "mask_ar": ones, "mask_input": ones == 1}
  batch |= {"mask_loss": ones, "_mask": np.ones(3, bool)}
  params = model.init(jax.random.key(0), *model.init_inputs())["params"]
  loss = next_token.make_loss(model)
  total, measured = jax.jit(loss)(params, batch, jax.random.key(0))
  assert measured["num_tokens"] == 21 and jnp.isfinite(total)
