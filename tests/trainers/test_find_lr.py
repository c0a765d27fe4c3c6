"""The learning-rate range test: its schedule, its end and its suggestions."""

import itertools
import json
import math

import numpy as np
import pytest

from trainers import find_lr, train
from trainers.plan import Plan


def test_every_group_of_parameters_keeps_its_factor(tiny):
  config = tiny.config(
    {
      "schedule": (
        ("img/.*", None),
        ("llm/layers/.*", dict(decay="rsqrt", warmup_steps=3, mult=0.5)),
        (".*", dict(decay="linear", cooldown_percent=0.3)),
      ),
      "weight_decay": 0.1,
      "ema_decay": 0.9,
    },
    tune="full",
  )
  before = config.to_dict()
  plan = Plan(find_lr.growing(config))
  assert config.to_dict() == before
  assert plan.total_steps == find_lr.STEPS
  assert plan.state.ema is None
  assert set(plan.learning_rates) == {"llm/layers/.*", ".*"}
  for step in (0, 7, 50, 99):
    rate = find_lr.LOWEST * (find_lr.HIGHEST / find_lr.LOWEST) ** (step / 100)
    found = {name: at(step) for name, at in plan.learning_rates.items()}
    assert found["llm/layers/.*"] == pytest.approx(rate / 2, rel=1e-5)
    assert found[".*"] == pytest.approx(rate, rel=1e-5)


def run(losses, num_examples=itertools.repeat(1)):
  """The test with a step that has these losses."""
  measured = (
    dict(loss=loss, num_examples=count)
    for loss, count in zip(losses, num_examples, strict=False)
  )
  batches = itertools.repeat(({}, {}))
  return find_lr.find_lr(lambda *_: (0, next(measured)), 0, {}, batches)


def descent():
  """Losses of gradient descent on 5 x^2, which diverges at rates above 0.2."""
  x = 1.0
  for i in range(find_lr.STEPS):
    yield 0.1 + 5 * x**2
    x *= 1 - 10 * 10 ** (-7 + 8 * i / find_lr.STEPS)
    x = max(abs(x), 0.1)  # the noise of a batch


def test_a_loss_that_falls_and_diverges():
  found = run(descent())
  assert len(found.losses) < find_lr.STEPS
  assert found.losses[-1] > 4 * found.losses[0]
  assert found.rates == pytest.approx(
    [10 ** (-7 + 8 * i / 100) for i in range(len(found.rates))]
  )
  smoothed = 0.0
  for i, loss in enumerate(found.losses):
    smoothed = 0.98 * smoothed + 0.02 * loss
    assert found.smoothed[i] == pytest.approx(smoothed / (1 - 0.98 ** (i + 1)))
  assert 0.01 < found.steepest < 0.2
  assert 0.02 < found.tenth < 0.2
  *table, first, second = found.describe().splitlines()
  assert table[0] == "learning rate  smoothed loss"
  assert table[1] == "1e-07          5.1"
  assert len(table) <= 31
  assert first == (
    f"the loss falls fastest at {found.steepest:.2g}; a tenth of the rate with "
    f"the lowest loss is {found.tenth:.2g}"
  )
  assert second == (
    f"--config.learning_rate={found.steepest:.2g} sets the peak of the schedule"
  )


@pytest.mark.parametrize(
  "losses",
  [
    [1.0] * 100,
    np.linspace(1, 3, 100),
    [1.0, 0.9, 100.0],
    [1.0] * 5 + [math.nan] * 95,
  ],
)
def test_a_loss_that_does_not_fall(losses):
  found = run(losses)
  assert np.isfinite(found.losses).all()
  assert found.steepest is None
  assert found.tenth is None
  last = found.describe().splitlines()[-1]
  assert last == "no suggestion: the loss falls at no rate"


def test_a_batch_without_examples_is_no_step():
  found = run(np.linspace(2, 1, 100), [1, 0, 1, *[1] * 97])
  assert len(found.losses) == 99
  assert found.losses[1] == pytest.approx(2 - 2 / 99)


@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.usefixtures("reuse_steps")
def test_a_run_is_left_as_it_is(tiny, tmp_path, capsys, monkeypatch, writes):
  monkeypatch.setattr(find_lr, "STEPS", 20)
  monkeypatch.chdir(tmp_path)
  train.try_learning_rates(tiny.config(), "run" if writes else None)
  files = [path for path in tmp_path.rglob("*") if path.is_file()]
  assert files == [tmp_path / "run/find_lr.json"] * writes
  for file in files:
    found = json.loads(file.read_text())
    count = len(found["rates"])
    assert 2 < count == len(found["losses"]) == len(found["smoothed"]) <= 20
  assert "trying 20 learning rates" in capsys.readouterr().err
