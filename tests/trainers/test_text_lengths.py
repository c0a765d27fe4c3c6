"""Padding to a few lengths changes no loss, and no example."""

import jax
import numpy as np
import pytest

from paligemma import init
from paligemma.models import paligemma as paligemma_model
from paligemma.planning import flops
from trainers import checks, inputs, start, text_lengths, train
from trainers.plan import Plan

SIZES = {"batch_size": 8, "text_len": 128}


def test_lengths_are_those_that_save_most():
  short, long = np.full(990, 21), np.full(10, 101)
  lengths, longest = text_lengths.choose([short, long], [99, 0.01], **SIZES)
  assert lengths == (32, 112, 128)
  assert longest == 112
  # Of two kinds of batches the second one saves nothing if it is rare or near.
  lengths, longest = text_lengths.choose([np.arange(97, 113)], [1], **SIZES)
  assert (lengths, longest) == ((112, 128), 112)
  wide = np.repeat([5, 30, 60, 90, 120], [4000, 200, 100, 50, 25])
  lengths, longest = text_lengths.choose([wide], [1], **SIZES)
  assert (len(lengths), lengths[-1], longest) == (4, 128, 128)


def test_lengths_of_texts_that_are_not_known_are_quarters():
  some = np.array([3])
  for known in ([None, some], [some, np.array([])]):
    lengths, longest = text_lengths.choose(known, [1, 1], **SIZES)
    assert (lengths, longest) == ((32, 64, 96, 128), 128)
  lengths, _ = text_lengths.choose([None], [1], batch_size=8, text_len=19)
  assert lengths == (16, 19)


@pytest.mark.parametrize(
  ("used", "expected"),
  [(0, 16), (1, 16), (17, 16), (18, 32), (33, 32), (34, 48), (49, 48)],
)
def test_a_batch_takes_the_least_length_that_holds_it(used, expected):
  mask = np.zeros((3, 49), bool)
  mask[1, :used] = True
  assert text_lengths.of_batch(mask, (16, 32, 48)) == expected


def test_all_processes_take_the_longest(monkeypatch):
  """Also one whose batch cannot be read, as the others wait for it."""
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  asked = []

  def gather(needed):
    asked.append(int(needed))
    return np.array([needed, 30])

  monkeypatch.setattr(text_lengths.multihost_utils, "process_allgather", gather)
  mask = np.arange(49)[None] < 9
  assert text_lengths.of_batch(mask, (16, 32, 48)) == 32
  assert text_lengths.of_batch(None, (16, 32, 48)) == 32
  assert asked == [8, 0]


def planned(config):
  plan = Plan(config)
  tok = plan.task.make_tokenizer(config, plan.model)
  checks.check(plan, tok, inputs.make_evaluators(config, tok, **plan.sizes))
  return plan, inputs.train_batches(config, plan.sources, tok)


@pytest.mark.usefixtures("reuse_steps")
def test_a_run_has_the_losses_of_the_longest_padding(tiny):
  config = tiny.config(text_len=40)
  plan, batches = planned(config)
  assert plan.text_lengths == (16, 40)
  assert plan.longest_text == 16
  assert "padded to 16 or 40 tokens, as" in plan.describe(plan.compile_step())
  config = tiny.config(text_len=40)
  config.train.text_buckets = False
  plain, plain_batches = planned(config)
  assert plain.text_lengths == (40,)
  found = []
  for each, read in ((plan, batches), (plain, plain_batches)):
    *_, step = train.fit(each)
    state, frozen = start.initial(each)
    feed = inputs.Feed(read, each.step_arguments()[-1], each.text_lengths)
    for _ in range(3):
      batch, _ = next(feed)
      assert batch["text"].shape[1] - 1 == each.longest_text
      state, measured = step(state, frozen, batch)
      found.append({k: float(v) for k, v in measured.items()})
    feed.close()
  for ours, expected in zip(found[:3], found[3:], strict=True):
    assert ours == pytest.approx(expected, rel=1e-6)


def test_a_longer_text_is_compiled_for_when_it_comes(capsys):
  compiled = []

  def compile_step(length):
    compiled.append(length)
    return lambda state, frozen, batch: (state, length)

  step = text_lengths.Steps(compile_step, 16, compile_step(16))
  for width, expected in ((17, 16), (33, 32), (17, 16), (33, 32)):
    batch = {"text": np.zeros((2, width))}
    assert step(None, None, batch) == (None, expected)
  assert compiled == [16, 32]


def test_short_texts_save_a_fifth_of_the_products():
  config = {"variant": "paligemma_3b", "dtype": "bfloat16"}
  model = paligemma_model.make(**config)
  shapes = init.shapes(model, 224)
  of_llm = [name for name in shapes if "/attn/" in name and "llm" in name]
  counts = {
    length: flops.train_step(
      model,
      shapes,
      of_llm,
      batch_size=64,
      res=224,
      text_len=length,
      supervised=64 * 10,
    )
    for length in (32, 128)
  }
  assert counts[32] <= 0.8 * counts[128]
