import math
import re

import jax
import numpy as np
import pytest

from configs.transfers import forkme
from paligemma.planning import collectives, memory
from paligemma.training import sharding
from trainers.plan import Plan


def forkme_config(tiny, **arguments):
  """forkme as it stands, on the tiny data set."""
  arguments = {
    "train": tiny.folder / "train.jsonl",
    "val": tiny.folder / "val.jsonl",
    "tokenizer": "paligemma/assets/tiny_tokenizer.model",
    **arguments,
  }
  return forkme.get_config(",".join(f"{k}={v}" for k, v in arguments.items()))


def resident_bytes():
  with open("/proc/self/statm") as file:
    return int(file.read().split()[1]) * 4096


def test_the_3b_model_is_planned_without_being_allocated(
  tiny, main, tmp_path, capsys
):
  arrays = sum(array.nbytes for array in jax.live_arrays())
  resident = resident_bytes()
  config = forkme_config(tiny, variant="paligemma_3b", res=224)
  assert main(config, tmp_path, dry_run=True, verbose=True) is None
  table = capsys.readouterr().out.rstrip()
  assert not list(tmp_path.iterdir())
  assert sum(x.nbytes for x in jax.live_arrays()) - arrays < 1e6
  # The compiler takes about 0.4 GB; the parameters alone would be 5.8 GB.
  assert resident_bytes() - resident < 1.5e9

  plan = Plan(config)
  lines = table.splitlines()
  everything = {**plan.trainable, **plan.frozen}
  assert sum(math.prod(x.shape) for x in everything.values()) == 2_923_335_408
  assert len(everything) == 32
  for name, leaf in everything.items():
    (line,) = (line for line in lines if line.split()[0] == name)
    assert sharding.describe(leaf.sharding) in line
    trains = name.startswith("llm/layers/attn/")
    assert line.endswith(r"llm/layers/(\d+/)?attn/.*") == trains
  assert re.search(r"llm/embedder/input_embedding +257152x2048 +bf", table)
  sums = {line.split()[0]: line.split() for line in lines if "numbers" in line}
  assert sums["trainable"][1] == "169,869,312"
  assert sums["frozen"][1] == f"{2_923_335_408 - 169_869_312:,}"
  assert sums["optimizer"][1] == "1"  # plain SGD keeps the count of steps
  frozen = list(plan.frozen.values())
  whole = sum(math.prod(x.shape) * x.dtype.itemsize for x in frozen)
  per_device = sum(map(memory.bytes_per_device, frozen))
  assert per_device == pytest.approx(whole / 8, rel=1e-3)
  assert f"{whole / 2**30:.3f} GiB" in table
  assert f"{per_device / 2**30:.3f} GiB per device" in table
  assert "mesh: {'data': 8, 'model': 1}, batch 32, 13 examples per epoch" in (
    table
  )
  (end,) = (
    i for i, line in enumerate(lines) if line.startswith("expected mem")
  )
  assert lines[end + 1].split()[:2] == ["data", "examples"]
  assert lines[end + 2].split()[:2] == ["train.main", "13"]


def test_durations_follow_the_data(tiny):
  config = tiny.config(epochs=5)
  config.schedule = (
    ("llm/.*q_einsum/w", None),
    (".*", {"decay": "linear", "warmup_percent": 0.25}),
  )
  plan = Plan(config)
  assert plan.sizes == {
    "batch_size": 8,
    "examples_per_epoch": 13,
    "total_steps": 8,
  }
  (rate,) = plan.learning_rates.values()
  rates = [float(rate(step)) / config.learning_rate for step in range(9)]
  assert rates == pytest.approx(
    [0, 1 / 2, 1] + [1 - i / 6 for i in range(1, 7)]
  )


def test_a_schedule_with_everything_that_can_be_said(tiny):
  config = tiny.config(epochs=50, tune="full")
  config.schedule = (
    ("llm/.*", {"decay": "rsqrt", "timescale_examples": 96, "shift": 7}),
    (".*", {"decay": "polynomial", "end": 0.1, "cooldown_percent": 0.25}),
  )
  config.learning_rate_mults = (("img/head/.*", 10.0),)
  plan = Plan(config)
  assert plan.total_steps == 81
  rates = plan.learning_rates
  of_llm = float(rates["llm/.*"](5)) / config.learning_rate
  assert of_llm == pytest.approx((1 + (5 + 7) / 12) ** -0.5)
  # Of the last 20 steps half are left, of all an eighth.
  of_rest = float(rates[".*"](71)) / config.learning_rate
  assert of_rest == pytest.approx(0.5 * (0.1 + 0.9 * 10 / 81))
  ones = {name: np.ones(2, np.float32) for name in plan.trainable}
  updates, _ = plan.optimizer.update(ones, plan.optimizer.init(ones), ones)
  head, other = updates["img/head/kernel"][0], updates["img/embedding/bias"][0]
  assert head / other == pytest.approx(10)


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"trainable": ("llm/layer/.*",)}, 'rule "llm/layer/.*" matches none'),
    ({"sharding": ((".*", "fdsp"),)}, 'strategy "fdsp".*Did you mean "fsdp"'),
    ({"sharding": (("llm/.*", "fsdp"),)}, 'no rule matches "img/'),
    ({"model.variant": "paligema_3b"}, 'Did you mean "paligemma_3b"'),
    ({"model.llm.widht": 3}, 'decoder field "widht".*Did you mean "width"'),
    ({"optimizer": "adan"}, 'optimizer "adan".*Did you mean "ada'),
    ({"optimizer_args": {"momentun": 0.9}}, 'no argument "momentun"'),
    ({"schedule": (("img/.*", {}),)}, "matches none of 3 names"),
    (
      {"schedule": ((".*", {"warmup_percnt": 0.1}),)},
      'schedule of ".*": decay "cosine" has no argument "warmup_percnt"',
    ),
    (
      {"learning_rate_mults": (("image/.*", 2.0),)},
      'rule "image/.*" matches none',
    ),
    ({"mesh": {"data": 3, "model": 1}}, "data=3 x model=1 needs 3 devices"),
    ({"total_epochs": None}, 'no duration "total": set one of total_steps'),
    ({"total_steps": 3}, "both total_steps and total_epochs are set"),
  ],
)
def test_a_value_that_does_not_fit_is_named(tiny, values, message):
  config = tiny.config()
  with config.ignore_type():
    for name, value in values.items():
      *parents, last = name.split(".")
      holder = config
      for parent in parents:
        holder = holder[parent]
      holder[last] = value
  with pytest.raises(ValueError, match=message) as caught:
    Plan(config)
  assert "\n" not in str(caught.value)


def test_full_fine_tuning_gathers_parameters_twice(tiny):
  """Once forward and once backward; what is summed comes back in parts."""
  config = tiny.config(tune="full", batch_size=16)
  # Large enough that layers are split: the smallest leaves stay whole.
  config.model.llm.update(
    width=192, mlp_dim=384, depth=3, remat_policy="block_inputs"
  )
  plan = Plan(config)
  found = collectives.find(plan.compile_step().as_text())
  layers = {
    name: leaf
    for name, leaf in plan.trainable.items()
    if "/layers/" in name and leaf.sharding.spec
  }
  size = sum(4 * leaf.size for leaf in layers.values())
  assert collectives.parameter_bytes(found, layers) == 2 * size
  sent = collectives.bytes_by_kind(found)
  assert size <= sent["reduce-scatter"] < 1.1 * size
  # The rest: the table's gradient and features, small leaves, measurements.
  assert sent["all-gather"] < 2.5 * size
  assert sent["all-reduce"] < 0.25 * size
  assert sent["all-to-all"] + sent["collective-permute"] == 0
