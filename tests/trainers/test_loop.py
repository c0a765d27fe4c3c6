import types

import pytest

from trainers.loop import Loop


@pytest.mark.parametrize(
  "loss, counts, expected",
  [
    (
      0.41237,
      {"skipped": 0},
      "loss 0.4124  learning_rate 0.03  321 examples/s",
    ),
    (
      None,
      {"skipped": 7, "truncated": 0},
      "no loss  learning_rate 0.03  321 examples/s  skipped 7",
    ),
  ],
)
def test_a_step_in_one_line(loss, counts, expected):
  sizes = {"batch_size": 13, "examples_per_epoch": 100}
  run = types.SimpleNamespace(
    plan=types.SimpleNamespace(total_steps=80, sizes=sizes)
  )
  line = Loop.summary(
    run, 20, loss, {"learning_rate": 0.03}, counts, 320.8, 3725
  )
  start = "step 20 of 80  25%  epoch 2.60  1:02:05 left  "
  assert line == start + expected
