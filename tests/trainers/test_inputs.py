import json
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma import evals
from paligemma.checkpoints.training import steps
from paligemma.data import text_ops
from paligemma.metrics import segmentation
from paligemma.models import paligemma as paligemma_model
from paligemma.training import sharding
from trainers import checks, inputs, tasks

ROOT = pathlib.Path(__file__).parents[2]
KEYS = ("text", "_mask")  # of a batch that a step reads
SIZES = {"batch_size": 8, "examples_per_epoch": 13, "total_steps": 10}


def test_the_model_must_have_a_row_for_every_token(tiny):
  config = tiny.config()
  model = paligemma_model.make(**config.model.to_dict())
  assert tasks.of(config).make_tokenizer(config, model).vocab_size == 1792
  small = paligemma_model.make("paligemma_tiny", vocab_size=1791)
  with pytest.raises(ValueError, match="1792 ids, but the model has only 1791"):
    tasks.of(config).make_tokenizer(config, small)


def test_the_batch_that_is_compiled_for_is_the_batch_that_comes(tiny):
  config = tiny.config(res=42, text_len=23)
  mesh = sharding.make_mesh(data=4, model=2)
  expected = inputs.abstract_batch(config, mesh)
  tokenizer = tasks.of(config).make_tokenizer(config, _model(config))
  batches = inputs.train_batches(config, inputs.make_sources(config), tokenizer)
  batch = next(batches)
  batches.close()
  placed = sharding.put_batch({key: batch[key] for key in expected}, mesh)
  for key, leaf in expected.items():
    assert (placed[key].shape, placed[key].dtype) == (leaf.shape, leaf.dtype)
    assert placed[key].sharding == leaf.sharding


def _model(config):
  return paligemma_model.make(**config.model.to_dict())


def test_batches_must_divide_over_the_devices(tiny):
  config = tiny.config(batch_size=12)
  inputs.abstract_batch(config, sharding.make_mesh(data=4, model=2))
  with pytest.raises(
    ValueError, match="batch_size 12 is not divisible by the 8"
  ):
    inputs.abstract_batch(config, sharding.make_mesh(data=8))


def mixture(tiny, **weights):
  """13 and 3 examples, mixed."""
  config = tiny.config()
  config.train.sources = {
    "a": {"kind": "jsonl", "path": str(tiny.folder / "train.jsonl")},
    "b": {
      "kind": "jsonl",
      "path": str(tiny.folder / "val.jsonl"),
      "slice": "[:3]",
      "cache": True,
    },
  }
  for name, weight in weights.items():
    config.train.sources[name].weight = weight
  return inputs.make_sources(config)


@pytest.mark.parametrize(
  ("weights", "expected"),
  [
    ({}, [1.0, 1.0]),
    ({"b": 0.25}, [1.0, 0.25]),
    ({"a": None, "b": None}, [13, 3]),  # as if they were one
    ({"a": 5.0, "b": None}, [5.0, 3]),
  ],
)
def test_an_epoch_of_a_mixture_is_as_long_as_all_its_sources(
  tiny, weights, expected
):
  sources = mixture(tiny, **weights)
  assert [len(source) for source, _ in sources] == [13, 3]
  assert [weight for _, weight in sources] == expected
  assert inputs.examples_per_epoch(sources) == 16
  assert inputs.examples_per_epoch(sources[:1]) == 13


def test_examples_of_a_group_are_drawn_equally_often(tiny, tokenizer):
  config = tiny.config()
  files = {"a": "train", "b": "val", "c": "val", "d": "val"}
  for name, file in files.items():
    path = str(tiny.folder / f"{file}.jsonl")
    config.train.sources[name] = {"kind": "jsonl", "path": path}
  del config.train.sources["main"]
  config.train.sources.a.update(group="ab", weight=0.5)
  config.train.sources.b.update(group="ab", weight=0.5)
  config.train.sources.d.update(weight=None)
  sources = inputs.make_sources(config)
  assert [weight for _, weight in sources] == [13 / 18, 5 / 18, 1.0, 5]
  plan = types.SimpleNamespace(config=config, sources=sources)
  assert checks._shares(plan) == {
    "train.a": "10.3%",
    "train.b": "4.0%",
    "train.c": "14.3%",
    "train.d": "71.4%",
  }


def test_evaluators_and_when_they_run(tiny, tokenizer):
  config = tiny.config({"train.ops": (text_ops.Lower("prefix"),)})
  config.evals.val.every_percent = 0.3
  config.evals.pplx = {
    "kind": "perplexity",
    "source": {"kind": "jsonl", "path": str(tiny.folder / "val.jsonl")},
    "batch_size": 8,
    "ops": (),
    "limit": 3,
  }
  (pplx, never), (val, every) = inputs.make_evaluators(
    config, tokenizer, **SIZES
  )
  assert (never, every) == (None, 3)
  assert isinstance(pplx, evals.Perplexity)
  assert (pplx.name, len(pplx.source), pplx.limit) == ("pplx", 5, 3)
  assert pplx.preprocess.train
  assert pplx.preprocess.ops == ()

  assert isinstance(val, evals.Generate)
  assert (val.name, val.sampler, val.metric) == ("val", "greedy", "exact_match")
  assert val.tokenizer is tokenizer
  assert not val.preprocess.train
  assert val.preprocess.ops == config.train.ops
  assert (val.preprocess.res, val.preprocess.text_len) == (28, 19)


BOX = "<loc0001><loc0002><loc0300><loc0400>"
MASKED = f"{BOX}{'<seg001>' * 16} 1"
MASK = {"size": [3, 5], "counts": [0, 15]}
CODEC = ROOT / "paligemma/assets/tiny_mask_codec.npz"


@pytest.fixture
def evaluator_of(tiny, tokenizer, tmp_path):
  """Makes the evaluator of fields of lines, and of values of the config."""

  def make(fields, **values):
    image = str(tiny.folder / "val0.png")
    lines = [{"image": image, "prefix": "detect 1", **x} for x in fields]
    path = tmp_path / "val.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    config = tiny.config(val=path)
    config.evals.val.update(values)
    _, (evaluator, _) = inputs.make_evaluators(config, tokenizer, **SIZES)
    return evaluator

  return make


def swap(example, rng):
  return {**example, "suffix": example["text"]}


@pytest.mark.parametrize(
  ("fields", "values", "expected"),
  [
    ([{"suffix": "1"}], {}, "exact_match"),
    ([{"suffix": ""}, {"suffix": f"{BOX} 1"}], {}, "detection"),
    ([{"suffix": f"{BOX} 1"}, {"suffix": "1"}], {"limit": 1}, "detection"),
    ([{"suffix": f"{BOX} 1"}], {"metric": "anls"}, "anls"),
    ([{"suffix": f"{BOX} 1"}], {"metric": None}, None),
    ([{"suffix": MASKED}], {"mask_codec": CODEC}, "detection"),
    (
      [{"suffix": MASKED, "mask": MASK}],
      {"mask_codec": CODEC, "metric": "detection"},
      "detection",
    ),
    ([{"text": f"{BOX} 1"}], {"ops": (swap,)}, "detection"),
    ([{"text": "1"}, {"image": "gone.png"}], {"ops": (swap,)}, "exact_match"),
  ],
)
def test_the_metric_that_fits_the_answers(
  evaluator_of, fields, values, expected
):
  evaluator = evaluator_of(fields, **values)
  assert evaluator.metric == expected
  is_chosen = expected == "detection" and "metric" not in values
  assert bool(evaluator.metric_note) == is_chosen


def test_masks_are_scored_where_there_are_any(evaluator_of):
  lines = [{"suffix": MASKED, "mask": MASK}]
  evaluator = evaluator_of(lines, mask_codec=CODEC)
  assert isinstance(evaluator.metric, segmentation.Segmentation)
  for values in ({}, {"metric": "segmentation"}):
    with pytest.raises(ValueError, match=r"^evals.val: .* with mask_codec"):
      evaluator_of(lines, **values)


def test_what_augments_and_what_belongs_to_a_source_runs_there_alone(
  tiny, tokenizer
):
  """Source, augment, ops: in this order, and in evaluation without augment."""

  def mark(text):
    def op(example, rng):
      return {**example, "prefix": f"{example['prefix']} {text}"}

    return op

  val = {"kind": "jsonl", "path": str(tiny.folder / "val.jsonl")}
  config = tiny.config(
    {
      "train.ops": (mark("all"),),
      "train.augment": (mark("augment"),),
      "train.sources": {
        "a": {**val, "ops": (mark("a"),)},
        "b": {**val, "slice": "[:3]"},
      },
      "evals": {
        "plain": {"kind": "perplexity", "source": val},
        "own": {"kind": "generate", "source": val, "ops": (mark("own"),)},
        "source": {
          "kind": "generate",
          "source": {**val, "ops": (mark("of source"),)},
        },
      },
    }
  )
  example = {"prefix": "", "suffix": ""}

  def prefix(preprocess):
    return preprocess.apply_ops(example, None)["prefix"]

  made = inputs.train_preprocesses(config, tokenizer)
  assert list(map(prefix, made)) == [" a augment all", " augment all"]
  made = inputs.make_evaluators(config, tokenizer, **SIZES)
  found = {e.name: prefix(e.preprocess) for e, _ in made}
  assert found == {
    "plain": " all",
    "own": " own",
    "source": " of source all",
  }
  # What the batches are made of.
  opened = inputs.make_sources(config)
  batches = inputs.train_batches(config, opened, tokenizer)
  batch = next(batches)
  batches.close()
  texts = [tokenizer.decode(row[row > 0].tolist()) for row in batch["text"]]
  assert {" a augment all" in text for text in texts} == {True, False}
  assert all(" augment all" in text for text in texts)


def test_without_a_source_there_is_nothing_to_train_on(tiny):
  config = tiny.config({"train.sources": {}})
  with pytest.raises(ValueError, match=r"config.train.sources is empty, expec"):
    inputs.make_sources(config)


def _perplexity(tiny, **changes):
  spec = {
    "kind": "perplexity",
    "source": {"kind": "jsonl", "path": str(tiny.folder / "val.jsonl")},
    "batch_size": 8,
    **changes,
  }
  return {name: value for name, value in spec.items() if value is not None}


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"kind": "perplexitty"}, 'kind of evals.mine "perplexitty".*"perplexity"'),
    (
      {"kind": None},
      "config.evals.mine.kind is missing: one of perplexity",
    ),
    ({"source": None}, "config.evals.mine.source.kind is missing: one of jso"),
    (
      {"batch_sise": 8},
      'evals.mine.batch_sise is unknown. .* "batch_size"',
    ),
    (
      {"every_steps": 2, "every_epochs": 1},
      "both every_steps and every_epochs",
    ),
    ({"source": {"kind": "jsonl", "path": "no.jsonl"}}, "^no.jsonl: "),
  ],
)
def test_a_wrong_evaluator_is_named(tiny, tokenizer, changes, message):
  config = tiny.config()
  config.evals = {"mine": _perplexity(tiny, **changes)}
  with pytest.raises(ValueError, match=message) as caught:
    inputs.make_evaluators(config, tokenizer, **SIZES)
  assert "\n" not in str(caught.value)


def test_same_seed_same_batches(tiny, tokenizer):
  def first(seed):
    config = tiny.config({"seed": seed})
    sources = inputs.make_sources(config)
    batches = inputs.train_batches(config, sources, tokenizer)
    batch = next(batches)
    batches.close()
    return batch["text"]

  np.testing.assert_array_equal(first(3), first(3))
  assert not np.array_equal(first(3), first(4))


class Numbered:
  """Stands in for batches.TrainBatches: batch n holds n in all three rows.

  n % 2 of them are skipped, n % 3 were cut; those of `bad` cannot be read.
  """

  def __init__(self, bad=()):
    self.number, self.bad, self.closed = 0, bad, False

  def __next__(self):
    self.number += 1
    if self.number in self.bad:
      raise ValueError(f"a.jsonl:{self.number}: bad")
    batch = dict.fromkeys(KEYS, np.full(3, self.number))
    rows = np.arange(3)
    mask, truncated = rows >= self.number % 2, 1 * (rows < self.number % 3)
    return {**batch, "_mask": mask, "truncated": truncated}

  def get_state(self):
    return {"number": self.number}

  def set_state(self, state):
    self.number = state["number"]

  def close(self):
    self.closed = True


def number(item):
  batch, _ = item
  assert batch.keys() == set(KEYS)
  return int(batch["text"][0])


@pytest.fixture
def shapes():
  split = sharding.batch_sharding(sharding.make_mesh(devices=jax.devices()[:1]))
  leaf = jax.ShapeDtypeStruct((3,), jnp.int32, sharding=split)
  return dict.fromkeys(KEYS, leaf)


def test_the_feed_gives_every_batch_in_turn_with_its_counts(shapes):
  feed = inputs.Feed(Numbered(), shapes)
  for i in range(1, 8):
    if i % 3:
      feed.prefetch()
      feed.prefetch()  # once is enough
    batch, counts = next(feed)
    assert batch["text"].sharding == shapes["text"].sharding
    np.testing.assert_array_equal(batch["text"], [i] * 3)
    assert counts == {"skipped": i % 2, "truncated": i % 3}


def test_a_batch_on_its_way_has_not_been_read(shapes):
  """The state is that of the batch that trains, whatever is read ahead."""
  batches = Numbered()
  feed = inputs.Feed(batches, shapes)
  assert number(next(feed)) == 1
  feed.prefetch()
  assert batches.number == 2
  state = json.loads(json.dumps(feed.get_state()))
  assert state == {"number": 1}
  assert number(next(feed)) == 2
  assert feed.get_state() == {"number": 2}

  fresh = inputs.Feed(Numbered(), shapes)
  fresh.prefetch()
  fresh.set_state(state)
  assert fresh.get_state() == state
  assert number(next(fresh)) == 2


def test_the_state_in_a_checkpoint_is_that_of_the_batch_that_trains(
  shapes, tmp_path
):
  feed = inputs.Feed(Numbered(), shapes)
  for _ in range(4):
    next(feed)
  feed.prefetch()
  with steps.StepCheckpoints(tmp_path) as checkpoints:
    checkpoints.save(4, {"w": jnp.zeros(2)}, (), data_iterator=feed)
    resumed = inputs.Feed(Numbered(), shapes)
    checkpoints.restore(4, {"w": jnp.zeros(2)}, (), data_iterator=resumed)
  assert number(next(resumed)) == 5


def test_an_error_in_a_batch_waits_for_its_turn(shapes):
  feed = inputs.Feed(Numbered(bad=[2]), shapes)
  feed.prefetch()
  assert number(next(feed)) == 1
  feed.prefetch()
  assert feed.get_state() == {"number": 1}
  with pytest.raises(ValueError, match=r"^a\.jsonl:2: bad$"):
    next(feed)


def test_the_wait_is_that_for_reading(shapes, monkeypatch):
  clock = iter(range(0, 1000, 5))
  monkeypatch.setattr(inputs.time, "perf_counter", lambda: next(clock))
  feed = inputs.Feed(Numbered(), shapes)
  assert feed.seconds_waited == 0
  feed.prefetch()
  assert feed.seconds_waited == 5
  next(feed)
  next(feed)
  assert feed.seconds_waited == 10


def test_a_feed_closes_what_it_reads(shapes):
  batches = Numbered()
  inputs.Feed(batches, shapes).close()
  assert batches.closed
