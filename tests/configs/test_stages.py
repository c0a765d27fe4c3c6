"""Stages 1 and 2: the published numbers, the schedule by hand, the mixture."""

import itertools

import numpy as np
import pytest

from configs.stages import pretraining, stage1, stage2_448, stage2_896
from configs.transfers import mix
from paligemma.training import optimizers
from trainers import schedule

STAGES = {"stage1": stage1, "stage2_448": stage2_448, "stage2_896": stage2_896}


def rates(config):
  """regex -> learning rate of a step."""
  total = config.total_examples // config.batch_size
  sizes = dict(batch_size=config.batch_size, examples_per_epoch=10**9)
  made = {}
  for regex, arguments in config.schedule:
    steps = schedule.in_steps(arguments, total_steps=total, **sizes)
    scale = optimizers.make_schedule(total, **steps)
    made[regex] = lambda step, f=scale: config.learning_rate * f(step)
  return made, total


@pytest.mark.parametrize(
  ("name", "res", "text_len", "examples"),
  [
    ("stage1", 224, 128, 1e9),
    ("stage2_448", 448, 512, 50e6),
    ("stage2_896", 896, 512, 10e6),
  ],
)
def test_sizes_are_the_published_ones(name, res, text_len, examples):
  config = STAGES[name].get_config()
  found = (config.res, config.text_len, config.total_examples)
  assert found == (res, text_len, examples)
  assert config.trainable == (".*",)


def test_each_begins_where_the_last_one_ended():
  first, second, third = (x.get_config() for x in STAGES.values())
  assert first.init == {
    "img": "runs/stage0_siglip",
    "llm": "runs/stage0_gemma",
  }
  assert (second.init, third.init) == ("runs/stage1", "runs/stage2_448")
  seen = 0
  for config in (first, second, third):
    for _, arguments in config.schedule:
      assert arguments["shift_examples"] == seen
    seen += config.total_examples


def test_the_learning_rate_by_hand():
  made, total = rates(stage1.get_config())
  assert total == 488_281
  image, rest = made[pretraining.IMAGE_TOWER], made[".*"]
  # Warm-ups of 4,883 and 48,828 steps, a timescale of 48,828.125.
  for step, of_image, of_rest in [
    (0, 0, 0),
    (2441, 2e-5 * 2441 / 48828, 2e-5 * 2441 / 4883),
    (4883, 2e-5 * 4883 / 48828, 2e-5),
    (48828, 2e-5, 2e-5 / (1 + (48828 - 4883) / 48828.125) ** 0.5),
    (
      300_000,
      2e-5 / (1 + (300_000 - 48828) / 48828.125) ** 0.5,
      2e-5 / (1 + (300_000 - 4883) / 48828.125) ** 0.5,
    ),
    (total, 0, 0),
  ]:
    assert image(step) == pytest.approx(of_image, rel=1e-5)
    assert rest(step) == pytest.approx(of_rest, rel=1e-5)
  # The cool-down: linear over the last 24,414 steps.
  half = total - 12_207
  curve = 2e-5 / (1 + (half - 4883) / 48828.125) ** 0.5
  assert rest(half) == pytest.approx(curve / 2, rel=1e-4)


def test_the_schedule_goes_on_from_stage_to_stage():
  configs = [module.get_config() for module in STAGES.values()]
  for before, after in itertools.pairwise(configs):
    (made, total), (then, length) = rates(before), rates(after)
    no_cooldown = total - round(0.05 * total) - 1
    last, first = made[".*"](no_cooldown), then[".*"](round(0.01 * length))
    assert first == pytest.approx(float(last), rel=0.03)
    assert first < last


def test_tasks_that_need_resolution_are_drawn_more_often():
  shares = []
  for module in STAGES.values():
    sources = module.get_config().train.sources
    weights = {task: spec.weight for task, spec in sources.items()}
    assert weights.keys() == pretraining.TASKS.keys()
    total = sum(weights.values())
    shares.append(sum(weights[x] for x in ("ocr", "detect", "segment")) / total)
  np.testing.assert_allclose(shares, [3 / 7, 12 / 16, 24 / 28])


def test_tasks_by_name():
  config = stage2_448.get_config("tasks=ocr+caption,data=d")
  found = {
    x: (spec.path, spec.weight) for x, spec in config.train.sources.items()
  }
  assert found == {
    "ocr": ("d/ocr.jsonl", 4.0),
    "caption": ("d/caption.jsonl", 1.0),
  }
  with pytest.raises(ValueError, match=r'"captions", expected .*"caption"'):
    stage1.get_config("tasks=captions")


@pytest.mark.parametrize(
  ("variant", "rate", "softcap"),
  [("paligemma_3b", 2e-5, None), ("paligemma2_28b", 5e-6, 30.0)],
)
def test_of_gemma_2(variant, rate, softcap):
  config = stage1.get_config(f"variant={variant}")
  assert config.learning_rate == rate
  assert config.model.llm.get("final_logits_softcap") == softcap


def test_a_mix_is_its_transfers():
  config = mix.get_config("transfers=chartqa+vqav2,data=tfds")
  weights = {
    name: (spec.weight, spec.group)
    for name, spec in config.train.sources.items()
  }
  assert weights == {
    "chartqa_augmented": (0.5, "chartqa"),
    "chartqa_human": (0.5, "chartqa"),
    "vqav2_main": (1.0, "vqav2"),
  }
  one = mix.vqav2.get_config("data=tfds")
  spec = config.train.sources.vqav2_main
  assert repr(spec.ops[-len(one.train.ops) :]) == repr(one.train.ops)
  assert config.train.ops == config.train.augment == ()
  for name, evaluator in one.evals.items():
    found = config.evals[f"vqav2_{name}"]
    assert repr(found.ops) == repr(evaluator.ops or one.train.ops)
    assert found.resize == one.train.resize


@pytest.mark.parametrize(
  ("data", "folder", "names"),
  [
    ("d", "d/gqa", ("train", "val")),
    ("", "data/gqa", ("train_balanced", "val_balanced")),
  ],
)
def test_a_mix_of_folders(data, folder, names):
  config = mix.get_config(f"transfers=gqa,data={data},final_split=true")
  found = {
    name: (spec.path, spec.weight, spec.group)
    for name, spec in config.train.sources.items()
  }
  assert found == {
    f"gqa_{name}": (f"{folder}/{name}.jsonl", 0.5, "gqa") for name in names
  }
  with pytest.raises(ValueError, match=r'"vqav", expected .*"vqav2"'):
    mix.get_config("transfers=vqav")
