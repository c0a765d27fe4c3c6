"""From a publisher's files to a training, an evaluation and its predictions."""

import json

import jax
import numpy as np
import pytest

from paligemma import tree
from scripts.datasets import folder
from tests.configs.test_transfers import (
  compiled,
  config_of,
  one_device_plan,
  tiny,
  tiny_tokenizer,
)
from tests.scripts.datasets import publishers
from trainers import inputs

__all__ = ["compiled"]  # a fixture

# One of each form: several answers, captions, two pictures, a box that is
# drawn, masks, several files to train on, a video.
NAMES = {
  "textvqa": "textvqa",
  "screen2words": "screen2words",
  "nlvr2": "nlvr2",
  "widgetcap": "widgetcap",
  "refcoco_seg": "refcoco_seg",
  "chartqa": "chartqa",
  "aokvqa_mc": "aokvqa",
  "msvd_qa": "msvd_qa",
}


@pytest.mark.parametrize("task", NAMES)
def test_two_steps_and_predictions(task, compiled, clip, tmp_path):
  name = NAMES[task]
  files = getattr(publishers, name)()
  files = {
    path: clip if path.endswith(".avi") else content
    for path, content in files.items()
  }
  raw = publishers.write_all(tmp_path / "raw", files)
  folder.prepare(name, raw, tmp_path / "data")
  # What is read is told by what is there, wherever it lies.
  expected = config_of(task)
  config = tiny(task, tmp_path / "data")
  assert config.train.sources.keys() == expected.train.sources.keys()
  if task == "nlvr2":  # five languages take as long as one
    for code in ("sw", "ta", "tr", "zh"):
      del config.evals[f"marvl_{code}"]
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
        assert all("prediction" in json.loads(line) for line in lines)
