"""However a run was stopped, resumed it ends as if it had never been."""

import signal

from paligemma import tree
from paligemma.checkpoints import npz

TOTAL = 60
SPEED = ("examples_per_second", "tokens_per_second")


def without_speed(lines):
  return [
    {name: value for name, value in line.items() if name not in SPEED}
    for line in lines
  ]


def saved_steps(folder):
  """Steps of the checkpoints that are wholly written."""
  if not (folder / "checkpoints").exists():
    return []
  names = (path.name for path in (folder / "checkpoints").iterdir())
  return sorted(int(name) for name in names if name.isdigit())


def assert_as_if_never_stopped(folder, uninterrupted, read_metrics):
  final = uninterrupted.folder / "final.npz"
  assert (folder / "final.npz").read_bytes() == final.read_bytes()
  found = without_speed(read_metrics(folder))
  assert found == without_speed(read_metrics(uninterrupted.folder))


def test_a_run_leaves_what_it_promises(uninterrupted, tiny, read_metrics):
  folder = uninterrupted.folder
  lines = read_metrics(folder)
  trained = [line for line in lines if "loss" in line]
  assert [line["step"] for line in trained] == list(range(1, TOTAL + 1))
  for name in ("pplx/perplexity", "val/exact_match"):
    at = [line["step"] for line in lines if name in line]
    assert at == [0, 15, 30, 45, 60]
  assert trained[-1]["loss"] < trained[0]["loss"]
  assert {line["num_examples"] for line in trained} == {8}
  assert saved_steps(folder) == [55, 60]

  predictions = (folder / "val/predictions.jsonl").read_text().splitlines()
  assert len(predictions) == 5
  before = npz.load(tiny.folder / "paligemma_tiny.npz")
  after = npz.load(folder / "final.npz")
  assert not tree.compare(before, after)
  changed = {name for name in after if (before[name] != after[name]).any()}
  assert changed == {name for name in after if name.startswith("llm/")}


def test_killed_and_resumed(uninterrupted, processes, read_metrics, tmp_path):
  command = (*uninterrupted.command, f"--workdir={tmp_path}")
  process = processes.start(*command)
  processes.wait_until(
    process, lambda: max(saved_steps(tmp_path), default=0) >= 15
  )
  process.send_signal(signal.SIGKILL)
  status, _ = processes.finish(process)
  assert status == -signal.SIGKILL
  assert saved_steps(tmp_path)[-1] < TOTAL
  assert not (tmp_path / "final.npz").exists()
  processes.run(*command)
  assert_as_if_never_stopped(tmp_path, uninterrupted, read_metrics)


def test_terminated_and_resumed(
  uninterrupted, processes, read_metrics, tmp_path
):
  command = (*uninterrupted.command, f"--workdir={tmp_path}")
  process = processes.start(*command)
  log = tmp_path / "metrics.jsonl"
  processes.wait_until(
    process, lambda: log.exists() and '"step": 17' in log.read_text()
  )
  process.send_signal(signal.SIGTERM)
  status, err = processes.finish(process)
  assert status == 0, err
  stopped = saved_steps(tmp_path)[-1]
  assert f"stopped at step {stopped}: saved, start again to resume" in err
  assert stopped == read_metrics(tmp_path)[-1]["step"] < TOTAL
  assert not (tmp_path / "final.npz").exists()
  processes.run(*command)
  assert_as_if_never_stopped(tmp_path, uninterrupted, read_metrics)


def test_started_again_at_the_end_changes_nothing(
  uninterrupted, processes, read_metrics
):
  folder = uninterrupted.folder
  files = [folder / "final.npz", folder / "val/predictions.jsonl"]
  before = [file.read_bytes() for file in files]
  lines = read_metrics(folder)
  processes.run(*uninterrupted.command, f"--workdir={folder}")
  assert [file.read_bytes() for file in files] == before
  assert without_speed(read_metrics(folder)) == without_speed(lines)
