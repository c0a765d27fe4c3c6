"""From a publisher's files to a training, an evaluation and its predictions."""

import json
import pathlib
import re

import jax
import numpy as np
import pytest

from paligemma import tree
from scripts import import_data
from scripts.datasets import folder as prepared
from scripts.submissions import catalog as submissions
from tests.configs.test_transfers import (
  compiled,
  config_of,
  let_train,
  one_device_plan,
  tiny,
  tiny_tokenizer,
)
from tests.configs.transfer_facts import FACTS
from tests.scripts.datasets import publishers
from trainers import inputs

__all__ = ["compiled"]  # a fixture


def files_of(name, clip):
  """What a publisher ships, with videos that can be decoded; and the lines."""
  files, lines = getattr(publishers, name)()
  ends = (".avi", ".mkv", ".mp4", ".webm")
  return {k: clip if k.endswith(ends) else x for k, x in files.items()}, lines


def hold_out_few(source):
  """Makes the part that is cut off a file small."""
  if source.slice is not None:
    source.slice = re.sub(r"\d{4,}", "3", source.slice)


def prepare(task, clip, folder):
  """Writes what a publisher ships, and prepares it; returns the splits."""
  first, *_ = config_of(task).train.sources.values()
  name = pathlib.Path(first.path).parent.name
  files, lines = files_of(name, clip)
  raw = publishers.write_all(folder / "raw", files)
  splits = list(lines) if name == "coco35l" else []  # of all its languages
  prepared.prepare(name, raw, folder / "data", splits=splits)
  return splits


def import_boxes(folder):
  """Likewise of COCO, whose boxes are imported as anybody's; checks lines."""
  files, lines = publishers.coco()
  raw = publishers.write_all(folder / "raw", files)
  import_data.import_data(
    "coco", raw / "annotations", folder / "data", task="detect"
  )
  for split, expected in lines.items():
    found = publishers.read_lines(folder / f"data/{split}.jsonl")
    for line, should in zip(found, expected, strict=True):
      assert {key: line[key] for key in should} == should


@pytest.mark.parametrize("task", FACTS)
def test_from_raw_files_to_a_submission(task, compiled, clip, tmp_path):
  splits = ()
  if task == "detection":
    import_boxes(tmp_path)
  else:
    splits = prepare(task, clip, tmp_path)
  # What is read is told by what is there, wherever it lies.
  config = tiny(task, tmp_path / "data")
  if task != "detection":
    expected = config_of(task)
    assert config.train.sources.keys() == expected.train.sources.keys()
  for specs in (config.train.sources, config.evals):
    for key in [x for x in specs if splits and x not in splits]:
      del specs[key]
  evaluated = [spec.source for spec in config.evals.values()]
  for source in (*config.train.sources.values(), *evaluated):
    hold_out_few(source)
  let_train(config)
  config.update(total_steps=2, batch_size=8)
  plan = one_device_plan(config)
  step, now = compiled(plan)
  batches = inputs.train_batches(config, plan.sources, tiny_tokenizer())
  feed = inputs.Feed(batches, plan.step_arguments()[-1])
  for _ in range(2):
    batch, _ = next(feed)
    now, measured = step(now, {}, batch)
    assert np.isfinite(float(measured["loss"]))
  feed.close()
  asked = set()
  with jax.numpy_rank_promotion("allow"):
    for evaluator, _ in inputs.make_evaluators(
      config, tiny_tokenizer(), **plan.sizes
    ):
      params = tree.unflatten(now.trainable)
      scores = evaluator.run(plan.model, params, plan.mesh, output_dir=tmp_path)
      assert all(np.isfinite(value) for value in scores.values())
      if evaluator.name != "pplx":
        file = tmp_path / evaluator.name / "predictions.jsonl"
        lines = file.read_bytes().splitlines()
        assert len(lines) == scores["num_examples"] > 0
        records = [json.loads(line) for line in lines]
        assert all("prediction" in record for record in records)
        form = submissions.FORMATS.get((task, evaluator.name))
        if form is not None:
          count, path = len(records), tmp_path / f"answers{form.suffix}"
          assert submissions.write(form, records, path, count) == []
          asked.add(evaluator.name)
  assert asked == {x for of, x in submissions.FORMATS if of == task}
