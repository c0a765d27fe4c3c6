"""The runs of the demo of the stages, and its table."""

import os
import signal
import subprocess
import sys

import pytest

from scripts import make_stages, stages


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """The runs, the data of stages 0 to 2, and that of the transfer."""
  folder = tmp_path_factory.mktemp("stages")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(make_stages, "NUM_VAL", 9)
    make_stages.make_stages(folder / "data", num=40)
  return folder / "runs", folder / "data", folder / "digits"


def test_transfers_differ_in_nothing_but_their_weights(folders):
  _, _, digits = folders
  first, second = (
    stages.transfer(init, 1, digits, 56).to_dict() for init in ("", "a.npz")
  )
  assert (first.pop("init"), second.pop("init")) == ("", "a.npz")
  assert first == second


def test_towers_of_stage_0_fit_those_of_stage_1(folders):
  _, data, _ = folders
  one = stages.pretraining("stage1", 0, data, "img=,llm=,examples=32")
  siglip, gemma = stages.siglip(data), stages.gemma(data)
  for name in ("width", "depth", "mlp_dim", "num_heads"):
    assert siglip.model.img[name] == one.model.img[name]
    assert gemma.model.llm[name] == one.model.llm[name]
  assert set(siglip.evals) == {"zero_shot", "retrieval"}


def test_the_table():
  found = {
    "siglip": [{"zero_shot/accuracy": 0.5, "other": 3.0}],
    "stage 1": [{"val/exact_match": x} for x in (0.25, 0.5, 0.75)],
  }
  assert stages.table(found).splitlines() == [
    "stages   zero-shot  recall@1  perplexity  exact match",
    "siglip   0.500      -         -           -",
    "stage 1  -          -         -           0.500 (0.250 to 0.750)",
  ]


PARENT = """
import os, time
from scripts import stages

if __name__ == "__main__":
  with stages.pool(1) as workers:
    print(workers.submit(os.getpid).result(), flush=True)
    workers.submit(time.sleep, 600).result()
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(how, tmp_path):
  (tmp_path / "parent.py").write_text(PARENT)
  parent = subprocess.Popen(
    [sys.executable, tmp_path / "parent.py"],
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    env={**os.environ, "PYTHONPATH": os.getcwd()},
  )
  worker = int(parent.stdout.readline())
  parent.send_signal(how)
  try:
    # The pipe is open for as long as either lives.
    parent.communicate(timeout=100)
  except subprocess.TimeoutExpired:
    os.kill(worker, signal.SIGKILL)
    raise
