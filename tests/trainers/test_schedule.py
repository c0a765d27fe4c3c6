import ml_collections
import pytest

from trainers import schedule

SIZES = {"batch_size": 8, "examples_per_epoch": 100, "total_steps": 1000}


@pytest.mark.parametrize(
  ("config", "expected"),
  [
    ({"warmup_steps": 37}, 37),
    ({"warmup_steps": 37.0}, 37),
    ({"warmup_steps": 0}, 0),
    ({"warmup_examples": 83}, 10),  # 10.4
    ({"warmup_examples": 85}, 11),  # 10.6
    ({"warmup_examples": 20}, 2),  # 2.5, a half goes to the even neighbour
    ({"warmup_examples": 1}, 1),  # 0.125, but positive
    ({"warmup_examples": 0}, 0),
    ({"warmup_epochs": 3}, 38),  # 37.5
    ({"warmup_epochs": 0.001}, 1),
    ({"warmup_percent": 0.05}, 50),
    ({"warmup_percent": 1.0}, 1000),
    ({"warmup_percent": 0}, 0),
    ({"warmup_steps": None, "warmup_epochs": 1}, 12),  # 12.5
    ({"total_steps": 5, "warmup_steps": 2}, 2),
  ],
)
def test_conversion(config, expected):
  for mapping in (config, ml_collections.ConfigDict(config)):
    actual = schedule.steps(mapping, "warmup", **SIZES)
    assert actual == expected
    assert isinstance(actual, int)


def test_percent_of_no_training_is_no_step():
  assert schedule.steps({"warmup_percent": 0.1}, "warmup", total_steps=0) == 0


def test_default_only_when_nothing_is_set():
  assert schedule.steps({}, "save", default=None) is None
  assert schedule.steps({"save_steps": None}, "save", default=7) == 7
  assert schedule.steps({"save_steps": 3}, "save", default=7) == 3


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({}, 'no duration "total": set one of total_steps, total_examples, total_'),
    (
      {"total_epochs": 3, "total_steps": 10},
      "both total_steps and total_epochs are set; keep one",
    ),
    ({"total_percent": 5}, r"total_percent is 5, .* 5 percent write 0\.05"),
    ({"total_percent": -0.1}, r"total_percent is -0\.1, expected 0 or more"),
    ({"total_steps": 1.5}, r"total_steps is 1\.5, expected whole steps"),
  ],
)
def test_messages(config, message):
  with pytest.raises(ValueError, match=message):
    schedule.steps(config, "total", **SIZES)


@pytest.mark.parametrize(
  ("unit", "missing"),
  [
    ("examples", "batch_size"),
    ("epochs", "batch_size"),
    ("epochs", "examples_per_epoch"),
    ("percent", "total_steps"),
  ],
)
def test_a_missing_size_is_named_even_with_a_default(unit, missing):
  sizes = {**SIZES, missing: None}
  with pytest.raises(
    ValueError, match=rf"log_{unit} cannot .*: {missing} .* log_steps instead"
  ):
    schedule.steps({f"log_{unit}": 0.5}, "log", default=10, **sizes)


@pytest.mark.parametrize(
  ("given", "expected"),
  [
    ({}, {}),
    (
      {"warmup_percent": 0.05, "decay": "linear"},
      {"warmup_steps": 50, "decay": "linear"},
    ),
    ({"cooldown_examples": 80, "end": 0.1}, {"cooldown_steps": 10, "end": 0.1}),
    (
      {"cooldown_epochs": 2, "warmup_steps": 3},
      {"cooldown_steps": 25, "warmup_steps": 3},
    ),
    ({"timescale": 5}, {"timescale": 5}),
    ({"timescale_examples": 100}, {"timescale": 12.5}),
    ({"timescale_epochs": 3}, {"timescale": 37.5}),
    ({"shift": 5, "timescale": 3}, {"shift": 5, "timescale": 3}),
    ({"shift_examples": 100}, {"shift": 12.5}),
    ({"shift_epochs": 3}, {"shift": 37.5}),
    ({"warmup_percnt": 0.1}, {"warmup_percnt": 0.1}),  # the schedule refuses it
  ],
)
def test_durations_of_a_schedule(given, expected):
  nothing = {"warmup_steps": 0, "cooldown_steps": 0}
  assert schedule.in_steps(given, **SIZES) == nothing | expected


@pytest.mark.parametrize("name", ["timescale", "shift"])
def test_what_need_not_be_whole_is_set_once(name):
  given = {name: 5, f"{name}_epochs": 1}
  with pytest.raises(ValueError, match=f"both {name} and {name}_epochs"):
    schedule.in_steps(given, **SIZES)
