"""What writers have written is read back, and is what metrics.jsonl holds."""

import json
import math
import os
import re
import struct
import time

import mlflow
import pytest
import tensorboardX.proto.event_pb2 as event_pb2
import wandb
from wandb.proto import wandb_internal_pb2

from trainers import report, train, writers

# Of SQLAlchemy 2.1, in MLflow 3.17.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
NAMES = ("tensorboard", "wandb", "mlflow")


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
  yield
  wandb.teardown()


def make_config(tiny, writes, **values):
  return tiny.config(
    {
      "writers": writes,
      "total_epochs": None,
      "total_steps": 4,
      "checkpoint_percent": None,
      "checkpoint_steps": 2,
      **values,
    }
  )


def in_tensorboard(folder):
  """{(name, step): number}, {name: picture or text} of the last start."""
  numbers, others = {}, {}
  for path in sorted((folder / "tensorboard").iterdir(), key=os.path.getmtime):
    data = path.read_bytes()
    while data:
      (length,) = struct.unpack("<Q", data[:8])
      event = event_pb2.Event.FromString(data[12 : 12 + length])
      data = data[16 + length :]
      if event.session_log.status:
        numbers = {k: x for k, x in numbers.items() if k[1] < event.step}
      for value in event.summary.value:
        if value.HasField("simple_value"):
          numbers[value.tag, event.step] = value.simple_value
        elif value.HasField("image"):
          others[value.tag] = value.image.encoded_image_string
        else:
          others[value.tag] = value.tensor.string_val[0].decode()
  return numbers, others


def in_wandb(folder):
  """{(name, step): value}, and the ids of all starts."""
  values, names = {}, set()
  paths = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
  end = time.monotonic() + 60
  # Its service, another process, writes them after a run has ended.
  while any(x.stat().st_size <= 7 for x in paths) and time.monotonic() < end:
    time.sleep(0.05)
  for path in paths:
    for record in records(path.read_bytes()):
      if record.HasField("run"):
        names.add(record.run.run_id)
      items = record.history.item
      line = {
        "/".join(x.nested_key) or x.key: json.loads(x.value_json) for x in items
      }
      values |= {(name, line["step"]): x for name, x in line.items()}
  return values, names


def records(data):
  """The records in a .wandb file: blocks of 32 KiB, each of chunks."""
  at, whole = 7, b""
  while at < len(data):
    left = -at % 2**15
    if left < 7 and left:
      at += left
      continue
    _, length, kind = struct.unpack("<IHB", data[at : at + 7])
    whole += data[at + 7 : at + 7 + length]
    at += 7 + length
    if kind in (1, 4):  # whole, or the last part
      yield wandb_internal_pb2.Record.FromString(whole)
      whole = b""


def in_mlflow(folder):
  """{(name, step): number} and the pictures of the only run."""
  client = mlflow.MlflowClient()
  experiment = client.get_experiment_by_name("paligemma")
  (run,) = client.search_runs([experiment.experiment_id])
  assert (folder / "mlflow.id").read_text().strip() == run.info.run_id
  assert run.info.status == "FINISHED"
  numbers = {
    (name, x.step): x.value
    for name in run.data.metrics
    for x in client.get_metric_history(run.info.run_id, name)
  }
  return numbers, client.list_artifacts(run.info.run_id, "images")


def test_a_resumed_run_is_one_run_everywhere(
  tiny, tmp_path, read_metrics, reuse_steps, monkeypatch, capfd
):
  folder = tmp_path / "run"
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr("trainers.loop.Loop.learning_rates", interrupt_at_4)
    train.train(make_config(tiny, NAMES), folder)
  train.train(make_config(tiny, NAMES), folder)
  assert "warning" not in capfd.readouterr().err
  expected = {
    (name, line["step"]): value
    for line in read_metrics(folder)
    for name, value in line.items()
    if name not in ("step", "bundle")
  }
  assert {step for _, step in expected} == {0, 1, 2, 3, 4}
  numbers, others = in_tensorboard(folder)
  assert numbers == pytest.approx(expected, rel=1e-6)  # they are float32
  assert others["val/0"].startswith(b"\x89PNG")
  assert others["val/0/text_summary"].startswith(
    "    prefix: what digit\n    prediction: "
  )
  values, names = in_wandb(folder)
  assert {key: values[key] for key in expected} == expected
  assert names == {(folder / "wandb.id").read_text().strip()}
  caption = values["val/0/caption", 4]
  assert caption.startswith("prefix: what digit\nprediction: ")
  numbers, pictures = in_mlflow(folder)
  assert numbers == expected
  assert len(pictures) > 4


def interrupt_at_4(loop, step):
  if step == 4:
    raise KeyboardInterrupt
  return {}


def open_all(folder, names, said, first_step=0):
  return writers.Writers(
    names, folder, first_step=first_step, about={"a": 1}, say=said.append
  )


def test_tensorboard_hides_what_will_be_written_again(tmp_path):
  made = open_all(tmp_path, ("tensorboard",), [])
  for step in range(1, 6):
    made.scalars(step, {"loss": 0.5})
  made.close()
  (path,) = (tmp_path / "tensorboard").iterdir()
  os.utime(path, (0, 0))
  path.rename(f"{path}.first")  # this process writes into the same one
  open_all(tmp_path, ("tensorboard",), [], first_step=3).close()
  numbers, _ = in_tensorboard(tmp_path)
  assert [step for _, step in numbers] == [1, 2, 3]


def test_names_that_mlflow_refuses(tmp_path):
  said = []
  made = open_all(tmp_path / "run", ("mlflow",), said)
  made.scalars(3, {"learning_rate/.*(attn|mlp)$": 0.5, "bad": math.nan})
  made.close()
  numbers, _ = in_mlflow(tmp_path / "run")
  assert numbers["learning_rate/.__attn_mlp__", 3] == 0.5
  assert math.isnan(numbers["bad", 3])
  (line,) = said
  assert re.fullmatch(
    rf"mlflow: run [0-9a-f]{{32}} at sqlite:///{tmp_path}/mlflow.db", line
  )


class Failing:
  """A writer that works once."""

  where = ""

  def __init__(self, folder, first_step, about):
    self.calls = 0

  def scalars(self, step, values):
    self.calls += 1
    if self.calls > 1:
      raise OSError(28, "No space left on device", "somewhere")

  def close(self):
    raise OSError("again")


def test_a_writer_that_fails_is_left_out(tmp_path, monkeypatch, capfd):
  monkeypatch.setitem(writers.WRITERS, "mlflow", Failing)
  folder = tmp_path / "run"
  made = report.Report(
    folder, first_step=0, total_steps=9, writes=("mlflow", "tensorboard")
  )
  for step in (1, 2, 3):
    made.write(step, {"loss": 1 / step}, f"step {step}")
  made.close()
  assert capfd.readouterr().err.splitlines() == [
    "step 1",
    "warning: writer mlflow failed and is left out, metrics.jsonl has all: "
    "somewhere: No space left on device",
    "step 2",
    "step 3",
  ]
  assert (folder / "metrics.jsonl").read_text().count("\n") == 3
  numbers, _ = in_tensorboard(folder)
  assert numbers == pytest.approx({("loss", i): 1 / i for i in (1, 2, 3)})


def test_a_writer_that_cannot_begin_is_left_out(tmp_path, monkeypatch):
  monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/none/mlflow.db")
  (tmp_path / "tensorboard").write_text("")
  said = []
  made = open_all(tmp_path, ("mlflow", "tensorboard", "jsonl"), said)
  assert not made
  first, second = said
  assert first.startswith("warning: writer mlflow failed and is left out")
  assert second == (
    "warning: writer tensorboard failed and is left out, metrics.jsonl has all:"
    f" {tmp_path}/tensorboard: File exists"
  )


def login_fails(prompt):
  raise wandb.Error("no route\nto host")


@pytest.mark.parametrize("reason", ["no API key", "no route to host"])
def test_without_a_key_wandb_is_offline(tmp_path, monkeypatch, reason):
  if reason != "no API key":
    monkeypatch.setattr("wandb.login", login_fails)
  monkeypatch.delenv("WANDB_MODE")
  monkeypatch.delenv("WANDB_API_KEY", raising=False)
  monkeypatch.setenv("NETRC", str(tmp_path / "none"))
  monkeypatch.setattr("sys.orig_argv", ["x", "--token=hunter2"])
  monkeypatch.setattr("sys.argv", ["x", "--token=hunter2"])
  said, folder = [], tmp_path / "run"
  made = open_all(folder, ("wandb",), said)
  made.scalars(1, {"loss": 0.5})
  made.close()
  (line,) = said
  name = (folder / "wandb.id").read_text().strip()
  assert re.fullmatch(
    rf"wandb: run {name} is offline; to send it: wandb sync "
    rf"{folder}/wandb/offline-run-\d+_\d+-{name} \({reason}\)",
    line,
  )
  values, _ = in_wandb(folder)
  assert values["loss", 1] == 0.5
  for path in folder.rglob("*"):
    assert path.is_dir() or b"hunter2" not in path.read_bytes(), path


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("wand", 'unknown writer of config.writers "wand".* Did you mean "wandb"?'),
    ("wandb", r'wandb is not installed: pip install "paligemma\[wandb\]"'),
    ("mlflow", r'mlflow is not installed: pip install "paligemma\[mlflow\]"'),
  ],
)
def test_a_writer_that_is_not_there(
  tiny, tmp_path, main, monkeypatch, capfd, name, message, dry_run
):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  config = make_config(tiny, ("jsonl", name))
  line = main(config, tmp_path / "run", dry_run=dry_run)
  assert re.search(message, line), line
  assert capfd.readouterr() == ("", "")  # nothing was loaded
