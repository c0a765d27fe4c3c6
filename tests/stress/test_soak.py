"""The soak driver sees every way in which two runs may differ."""

import json
import shutil

import numpy as np
import pytest

from paligemma.checkpoints import npz
from tests.stress import soak


@pytest.fixture
def runs(tmp_path):
  """Two folders that hold the same run."""
  whole = tmp_path / "whole"
  for folder in ("val", "checkpoints/21", "checkpoints/24"):
    (whole / folder).mkdir(parents=True)
  npz.save(whole / "final.npz", {"w": np.ones(3, np.float32)})
  (whole / "val/predictions.jsonl").write_text('{"index": 0}\n')
  lines = [{"step": i, "loss": i / 7, "mfu": 0.5} for i in range(3)]
  (whole / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
  again = tmp_path / "again"
  shutil.copytree(whole, again)
  return again, whole


@pytest.mark.parametrize("name", ["plain", "1 to 4 devices"])
def test_speed_alone_may_differ(runs, name):
  metrics = runs[0] / "metrics.jsonl"
  metrics.write_text(metrics.read_text().replace("0.5", "0.7"))
  assert soak.differences(soak.MODES[name], *runs) == []


def spoil_weights(run):
  npz.save(run / "final.npz", {"w": np.full(3, 1.01, np.float32)})


@pytest.mark.parametrize("name", ["plain", "processes", "four processes"])
@pytest.mark.parametrize(
  ("spoil", "message"),
  [
    (spoil_weights, "final.npz differs"),
    (lambda run: (run / "val/predictions.jsonl").write_text(""), "predictions"),
    (lambda run: (run / "metrics.jsonl").write_text(""), "other steps"),
    (lambda run: (run / "checkpoints/24").rmdir(), "checkpoints of steps"),
    (lambda run: (run / ".final.npz.vm.3.tmp").touch(), "is left over"),
    (lambda run: (run / "trainer.lock").touch(), "is left over"),
  ],
)
def test_what_differs_is_named(runs, name, spoil, message):
  spoil(runs[0])
  (found,) = soak.differences(soak.MODES[name], *runs)
  assert message in found


def test_rounding_is_no_difference_between_devices(runs):
  npz.save(runs[0] / "final.npz", {"w": np.full(3, 1.0001, np.float32)})
  mode = soak.MODES["1 to 4 devices"]
  assert soak.differences(mode, *runs) == []
  spoil_weights(runs[0])
  (found,) = soak.differences(mode, *runs)
  assert found.startswith("final.npz differs by 0.00999")


def test_the_table_counts_signals():
  runs = [
    soak.Run("plain", ["SIGKILL at final", "SIGKILL at any time"], 0.0, []),
    soak.Run("plain", ["SIGTERM at evaluation"], 1.26, ["final.npz differs"]),
  ]
  assert soak.table(runs)[1:] == [
    ("plain", "2", "2", "1", "1.3 s", "1"),
    ("all", "2", "2", "1", "1.3 s", "1"),
  ]
