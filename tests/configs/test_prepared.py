"""From a publisher's files to a training, an evaluation and its predictions."""

import json
import pathlib
import re

import jax
import numpy as np
import pytest

from paligemma import tree
from scripts.datasets import folder
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

# COCO-35L in all its languages takes as long as 70 others.
LANGUAGES = ("train_de", "train_fil", "dev_de", "dev_en", "xm3600_quz")


def files_of(name, clip):
  """What a publisher ships, with videos that can be decoded."""
  return {
    path: clip if path.endswith((".avi", ".mkv", ".mp4")) else content
    for path, content in getattr(publishers, name)().items()
  }


def hold_out_few(source):
  """Makes dozens of the examples of a file that is cut, and the part small."""
  if source.slice is not None:
    source.slice = re.sub(r"\d{4,}", "3", source.slice)
    path = pathlib.Path(source.path)
    lines = path.read_text().splitlines(keepends=True)
    if len(lines) < 20:
      path.write_text("".join(lines * 20))


@pytest.mark.parametrize(
  "task", [task for task in FACTS if task != "detection"]
)
def test_from_raw_files_to_a_submission(task, compiled, clip, tmp_path):
  expected = config_of(task)
  first, *_ = expected.train.sources.values()
  name = pathlib.Path(first.path).parent.name
  raw = publishers.write_all(tmp_path / "raw", files_of(name, clip))
  splits = LANGUAGES if name == "coco35l" else ()
  folder.prepare(name, raw, tmp_path / "data", splits=splits)
  # What is read is told by what is there, wherever it lies.
  expected = config_of(task)
  config = tiny(task, tmp_path / "data")
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
        lines = file.read_text().splitlines()
        assert len(lines) == scores["num_examples"] > 0
        records = [json.loads(line) for line in lines]
        assert all("prediction" in record for record in records)
        form = submissions.FORMATS.get((task, evaluator.name))
        if form is not None:
          count, path = len(records), tmp_path / f"answers{form.suffix}"
          assert submissions.write(form, records, path, count) == []
          asked.add(evaluator.name)
  assert asked == {x for of, x in submissions.FORMATS if of == task}
