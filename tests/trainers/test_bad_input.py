"""A mistake ends in one line that says where, and harms no earlier result."""

import dataclasses
import errno
import io
import json
import os
import re
import shutil
from typing import ClassVar

import jax
import numpy as np
import pytest
from PIL import Image

from paligemma.checkpoints import npz
from paligemma.data import image as image_lib
from paligemma.data.batches import TrainBatches
from trainers import inputs, preemption, status, tasks, train
from trainers.loop import Loop
from trainers.plan import Plan

STOPPED, TOTAL = 3, 6
# Of a line of metrics, what an interruption must not change.
EQUAL = ("step", "loss", "grad_norm", "pplx/perplexity", "val/exact_match")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """Where a test finds the data and the run: always the same path."""
  return tmp_path_factory.mktemp("bad_input")


def make_config(tiny, place, values=None, **arguments):
  """Six steps that checkpoint after each and evaluate nothing."""
  data = place / "data"
  files = {
    "train": data / "train.jsonl",
    "tokenizer": data / "tiny_tokenizer.model",
    "init": data / "paligemma_tiny.npz",
  }
  values = {"evals": {}, "keep_checkpoints": 9, **(values or {})}
  arguments = {**files, "epochs": TOTAL * 8 / 13, **arguments}
  return tiny.config(values, **arguments)


@pytest.fixture(scope="module")
def stopped(tiny, place, tokenizer):
  """A copy of the data and of a run that was told to stop after three steps."""
  shutil.copytree(tiny.folder, place / "data")
  tokenizer.save(place / "data/tiny_tokenizer.model")
  config = make_config(tiny, place)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      preemption.Preemption, "requested", lambda self, step: step == STOPPED
    )
    train.train(config, place / "run")
  copy = place.parent / f"{place.name}_copy"
  shutil.copytree(place, copy)
  return copy


@pytest.fixture
def afresh(stopped, place):
  """Data and run as they were, at the path that the config names."""
  shutil.rmtree(place)
  shutil.copytree(stopped, place)
  return place


def contents(folder):
  """path -> bytes of all files."""
  return {
    path: path.read_bytes() for path in folder.rglob("*") if path.is_file()
  }


def edit(path, number, **fields):
  """Changes fields of a line of JSONL, None to remove one."""
  lines = path.read_text().splitlines()
  row = {**json.loads(lines[number - 1]), **fields}
  row = {name: value for name, value in row.items() if value is not None}
  lines[number - 1] = json.dumps(row)
  path.write_text("\n".join(lines) + "\n")


def replace_line(path, number, text):
  lines = path.read_text().splitlines()
  lines[number - 1] = text
  path.write_text("\n".join(lines) + "\n")


def png(mode, size):
  file = io.BytesIO()
  Image.new(mode, size).save(file, format="PNG")
  return file.getvalue()


def cut(path):
  path.write_bytes(path.read_bytes()[:-200])


# What is done to the data of the run that is to be resumed, and the message.
BAD_DATA = {
  "malformed line": (
    lambda data: replace_line(data / "train.jsonl", 5, '{"image": "a.png",'),
    r"train.jsonl:5: .*JSON",
  ),
  "no object": (
    lambda data: replace_line(data / "train.jsonl", 5, "[1, 2]"),
    r"train.jsonl:5: ",
  ),
  "no image key": (
    lambda data: edit(data / "train.jsonl", 3, image=None, imagge="a.png"),
    r'train.jsonl:3: .*"image"',
  ),
  "no suffix": (
    lambda data: edit(data / "train.jsonl", 3, suffix=None, sufix="1"),
    r'train.jsonl:3: missing key "suffix", found .*Did you mean "sufix"',
  ),
  "no image file": (
    lambda data: (data / "train7.png").unlink(),
    r"train.jsonl:8: cannot read image .*train7.png: No such file",
  ),
  "cut image": (
    lambda data: cut(data / "train7.png"),
    r"train.jsonl:8: truncated or damaged image of \d+ bytes",
  ),
  "no image": (
    lambda data: (data / "train7.png").write_bytes(b"<html></html>"),
    r"train.jsonl:8: not a readable image: 13 bytes",
  ),
  "image bomb": (
    lambda data: (data / "train7.png").write_bytes(png("1", (30_000, 3000))),
    rf"train.jsonl:8: image is too large: .*{image_lib.MAX_PIXELS}",
  ),
  "too long": (
    lambda data: edit(data / "train.jsonl", 2, prefix="what " * 20),
    r"train.jsonl:2: prompt and answer have \d+ \+ \d+ tokens, text_len 19",
  ),
  "no example": (
    lambda data: (data / "train.jsonl").write_text("\n"),
    r"train.jsonl: .*(empty|no )",
  ),
  "no file": (
    lambda data: (data / "train.jsonl").unlink(),
    r"train.jsonl: .*No such file",
  ),
  "other data": (
    lambda data: (data / "val.jsonl").replace(data / "train.jsonl"),
    r"data state was saved with examples \[13\], this run has \[5\]",
  ),
  "corrupt weights": (
    lambda data: cut(data / "paligemma_tiny.npz"),
    r"paligemma_tiny.npz: not an npz file, or corrupt or cut short",
  ),
  "other weights": (
    lambda data: npz.save(data / "paligemma_tiny.npz", {"w": np.zeros(3)}),
    r"checkpoint of step 3 was trained on top of .*sha256:.*give the former",
  ),
  "no tokenizer": (
    lambda data: (data / "tiny_tokenizer.model").unlink(),
    r"tiny_tokenizer.model: cannot read tokenizer",
  ),
}


def assert_one_line(line, message):
  assert line is not None, "no error"
  assert line.startswith("error: ")
  assert "\n" not in line
  assert re.search(message, line), line


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(tiny, afresh, main, reuse_steps, case):
  spoil, message = BAD_DATA[case]
  spoil(afresh / "data")
  before = contents(afresh / "run")
  line = main(make_config(tiny, afresh), afresh / "run")
  assert_one_line(line, message)
  after = contents(afresh / "run")
  for path, data in before.items():
    if path.name in ("bundle.json", "status.json"):  # of this start, too
      continue
    appended = path.name == "metrics.jsonl"  # by steps before the bad example
    found = after.get(path, b"")
    assert (found[: len(data)] if appended else found) == data, path


def test_what_was_mended_goes_on(tiny, afresh, main, reuse_steps, read_metrics):
  config = make_config(tiny, afresh)
  picture = afresh / "data/train7.png"
  whole = picture.read_bytes()
  cut(picture)
  assert "truncated" in main(config, afresh / "run")
  picture.write_bytes(whole)
  assert main(config, afresh / "run") is None
  lines = read_metrics(afresh / "run")
  assert [line["step"] for line in lines] == list(range(1, TOTAL + 1))


def test_what_was_moved_goes_on(tiny, afresh, main, reuse_steps, read_metrics):
  """Data, tokenizer and weights at another path; the frozen weights count."""
  moved = afresh / "moved"
  (afresh / "data").rename(moved)
  config = make_config(
    tiny,
    afresh,
    {"log_steps": 2, "checkpoint_percent": 0.5, "sharding": ((".*", "fsdp"),)},
    train=moved / "train.jsonl",
    tokenizer=moved / "tiny_tokenizer.model",
    init=moved / "paligemma_tiny.npz",
  )
  folder = afresh / "run"
  assert main(config, folder) is None
  assert [line["step"] for line in read_metrics(folder)] == [1, 2, 3, 4, 6]
  history = (folder / "history.jsonl").read_text().splitlines()
  assert json.loads(history[0])["step"] == STOPPED


@pytest.mark.parametrize("change", ["longer", "larger batches"])
def test_other_values_change_a_run_if_asked_to(
  tiny, afresh, main, reuse_steps, read_metrics, change, capfd
):
  config = make_config(tiny, afresh)
  if change == "longer":
    config.total_epochs, total = 9 * 8 / 13, 9
  else:
    config.batch_size, config.total_epochs, total = 16, 5 * 16 / 13, 5
  folder = afresh / "run"
  assert_one_line(main(config, folder), "another config .*--override_config")
  assert main(config, folder, override=True) is None
  assert "resumed with changes: " in capfd.readouterr().err
  lines = read_metrics(folder)
  assert [line["step"] for line in lines] == list(range(1, total + 1))
  assert lines[-1]["num_examples"] == config.batch_size
  assert lines[-1]["learning_rate"] > 0
  # From now on it is the config of the run.
  assert main(config, folder) is None
  shorter = make_config(tiny, afresh, epochs=2 * 8 / 13)
  line = main(shorter, folder, override=True)
  message = f"that of step {total}, but the training now ends at step 2; give"
  assert_one_line(line, message)


def test_a_tokenizer_without_locations(tiny, afresh, main, sentencepiece_model):
  (afresh / "data/tiny_tokenizer.model").write_bytes(sentencepiece_model)
  line = main(make_config(tiny, afresh), afresh / "run")
  assert_one_line(line, r"tiny_tokenizer.model: 1152 of 1152 <loc> and <seg>")


def test_a_folder_of_another_config(tiny, afresh, main):
  before = contents(afresh / "run")
  config = make_config(tiny, afresh, {"learning_rate": 0.5})
  line = main(config, afresh / "run")
  assert_one_line(
    line,
    rf"{afresh / 'run'}: belongs to another config "
    r"\(learning_rate: found 0.03, given 0.5\); use another --workdir",
  )
  assert contents(afresh / "run") == before


def test_a_full_disk_is_one_line_with_the_path(
  tiny, afresh, main, reuse_steps, monkeypatch, capfd
):
  """As tensorstore tells it, in the background, and as Python does."""
  config = make_config(tiny, afresh)
  folder = afresh / "run"
  full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  def save_fails(self, *arguments, **named):
    raise ValueError("at file 9: No space left [os_error_code='28']")

  def write_fails(*arguments):
    raise full

  for name, fails, path in (
    ("orbax.checkpoint.CheckpointManager.save", save_fails, "checkpoints"),
    ("paligemma.disk._sync", write_fails, "trainer.lock"),
  ):
    with monkeypatch.context() as patch:
      patch.setattr(name, fails)
      line = main(config, folder)
    assert line == f"error: {folder / path}: {os.strerror(errno.ENOSPC)}"
    assert "Traceback" not in capfd.readouterr().err
  # With room again, it goes on, and needs none for TensorBoard.
  monkeypatch.setattr("tensorboardX.summary.scalar", write_fails)
  assert main(config, folder) is None
  assert (
    "warning: writer tensorboard failed and is left out, metrics.jsonl has all:"
    f" [Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}\n"
  ) in capfd.readouterr().err


BAD_CONFIGS = {
  "batch": (
    lambda config: config.update(batch_size=12, total_epochs=5.0),
    'batch_size 12 is not divisible by the 8 devices of mesh axis "data"',
  ),
  "variant": (
    lambda config: config.model.update(variant="paligema_3b"),
    'unknown variant "paligema_3b".*Did you mean "paligemma_3b"',
  ),
  "what trains": (
    lambda config: config.update(trainable=("llm/layers/atn/.*",)),
    'rule "llm/layers/atn/.*" matches none of 32 names',
  ),
  "on_bad": (
    lambda config: config.train.update(on_bad="skp"),
    'unknown on_bad "skp".*Did you mean "skip"',
  ),
  "no weights": (
    lambda config: config.update(init="no.npz"),
    "no.npz: No such file or directory",
  ),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_bad_config(tiny, afresh, main, reuse_steps, case):
  spoil, message = BAD_CONFIGS[case]
  config = make_config(tiny, afresh)
  spoil(config)
  folder = afresh / "new"
  assert_one_line(main(config, folder), message)
  # Mended, it may use the same folder.
  assert not (folder / "config.json").exists()


def test_weights_of_another_size(tiny, afresh, main, reuse_steps):
  config = make_config(tiny, afresh)
  path = afresh / "data/paligemma2_tiny.npz"
  config.init = str(path)
  line = main(config, afresh / "new")
  assert_one_line(line, f"{path}: does not fit the model, 5 leaves differ: ")
  for difference in (
    "llm/layers/attn/attn_vec_einsum/w: found shape (2, 4, 10, 16), "
    "expected (2, 2, 10, 16)",
    "llm/layers/attn/kv_einsum/w: found shape (2, 2, 2, 16, 10)",
    "llm/layers/attn/q_einsum/w: found shape (2, 4, 16, 10)",
    "llm/layers/post_attention_norm/scale: unexpected, found (2, 16)",
    "llm/layers/post_ffw_norm/scale: unexpected, found (2, 16)",
  ):
    assert difference in line


def test_pickled_weights_are_refused(tiny, afresh, main, reuse_steps):
  config = make_config(tiny, afresh)
  arrays = npz.load(config.init)
  arrays["img/head/bias"] = np.array([object()] * 16)
  path = afresh / "data/pickled.npz"
  np.savez(path, **arrays)
  config.init = str(path)
  line = main(config, afresh / "new")
  assert_one_line(line, f"{path}: img/head/bias: pickled objects are refused")


def test_an_epoch_that_is_skipped_as_a_whole_ends_the_run(
  tiny, afresh, main, reuse_steps, read_metrics
):
  for picture in (afresh / "data").glob("train*.png"):
    picture.unlink()
  config = make_config(tiny, afresh, {"train.on_bad": "skip"})
  line = main(config, afresh / "run")
  assert_one_line(
    line,
    "step 5: every example of the last 2 batches, a whole epoch, was skipped; "
    "check the data",
  )
  assert [m["step"] for m in read_metrics(afresh / "run")] == [1, 2, 3, 4]


def test_no_supervised_token(tiny, afresh, main, reuse_steps, monkeypatch):
  read = TrainBatches.__next__

  def reads(self):
    batch = read(self)
    return {**batch, "mask_loss": 0 * batch["mask_loss"]}

  monkeypatch.setattr(TrainBatches, "__next__", reads)
  before = contents(afresh / "run/checkpoints")
  line = main(make_config(tiny, afresh), afresh / "run")
  assert_one_line(line, "the batch of step 4 supervises no token: its examples")
  assert contents(afresh / "run/checkpoints") == before


def test_a_batch_whose_every_example_is_skipped_is_no_step(
  tiny, afresh, main, reuse_steps, read_metrics, capfd, monkeypatch
):
  """Of 13 batches of one example, over two epochs, one cannot be read."""
  devices = jax.devices()[:1]
  monkeypatch.setattr(jax, "devices", lambda: devices)
  (afresh / "data/train5.png").unlink()
  config = make_config(
    tiny,
    afresh,
    {"train.on_bad": "skip", "ema_decay": 0.5},
    batch_size=1,
    epochs=2.0,
  )
  config.schedule = ((".*", {"decay": "cosine"}),)
  folder = afresh / "new"
  assert main(config, folder) is None
  lines = read_metrics(folder)
  assert [line["step"] for line in lines] == list(range(1, 27))
  empty = [line["step"] for line in lines if not line["num_examples"]]
  assert len(empty) == 2
  said = capfd.readouterr().err
  for number, step in enumerate(empty, start=1):
    before, line = lines[step - 2], lines[step - 1]
    assert "loss" not in line
    assert line["empty_batches"] == line["skipped"] == number
    assert line["param_norm"] == before["param_norm"]
    assert line["learning_rate"] == before["learning_rate"]
    assert f"step {step}: every example of its batch was skipped; the" in said
  rates = [line["learning_rate"] for line in lines if "loss" in line]
  assert len(set(rates)) == 24  # each step had its own


def test_weights_that_are_no_numbers(tiny, afresh, main, reuse_steps):
  config = make_config(tiny, afresh)
  arrays = npz.load(config.init)
  arrays["img/head/bias"][3] = np.nan
  npz.save(afresh / "data/nan.npz", arrays)
  config.init = str(afresh / "data/nan.npz")
  line = main(config, afresh / "new")
  assert_one_line(line, "step 1: loss is nan; there is no checkpoint yet in ")
  failed = status.read(afresh / "new")
  assert failed.state == "failed" and failed.error in line
  assert not list((afresh / "new/checkpoints").iterdir())


@dataclasses.dataclass(frozen=True)
class Recorder:
  """An evaluator that notes whether the weights it is given are finite."""

  name: str
  source: object
  preprocess: object
  on_bad: str
  seen: ClassVar[list] = []
  reads_loss: ClassVar[bool] = False

  def run(self, model, params, mesh, *, output_dir, rng, progress):
    w = params["llm"]["layers"]["attn"]["q_einsum"]["w"]
    self.seen.append(bool(np.isfinite(w).all()))
    return {"calls": len(self.seen)}


@pytest.fixture
def recorder(afresh, monkeypatch):
  """Its values in a config, to run after every step."""
  fitting = tasks.TASKS["next_token"].evaluators
  monkeypatch.setitem(fitting, "recorder", Recorder)
  Recorder.seen.clear()
  source = {"kind": "jsonl", "path": str(afresh / "data/val.jsonl")}
  return {"kind": "recorder", "source": source, "every_steps": 1}


def test_started_again_it_evaluates_again_and_changes_nothing(
  tiny, afresh, main, reuse_steps, recorder, read_metrics
):
  config = make_config(tiny, afresh, {"evals": {"recorder": recorder}})
  folder = afresh / "run"
  assert main(config, folder) is None
  final = (folder / "final.npz").read_bytes()
  evaluated = [m["step"] for m in read_metrics(folder) if "loss" not in m]
  assert evaluated == list(range(STOPPED, TOTAL + 1))
  assert main(config, folder) is None
  assert (folder / "final.npz").read_bytes() == final
  evaluated = [m["step"] for m in read_metrics(folder) if "loss" not in m]
  assert evaluated == list(range(STOPPED, TOTAL + 1))
  trained = [m["step"] for m in read_metrics(folder) if "loss" in m]
  assert trained == list(range(1, TOTAL + 1))
  assert Recorder.seen == [True] * 5


@pytest.mark.parametrize(
  ("checkpoint_percent", "saved", "good"),
  [
    (0.17, ["1"], "the last good checkpoint is that of step 1"),
    (1.0, [], "there is no checkpoint yet"),
  ],
)
def test_a_step_that_explodes(
  tiny,
  afresh,
  main,
  reuse_steps,
  recorder,
  read_metrics,
  checkpoint_percent,
  saved,
  good,
):
  config = make_config(
    tiny,
    afresh,
    {
      "learning_rate": 1e38,
      "checkpoint_percent": checkpoint_percent,
      "log_steps": 4,
      "evals": {"recorder": recorder},
    },
  )
  folder = afresh / "new"
  line = main(config, folder)
  # The warm-up makes the first step one of length zero.
  assert_one_line(
    line,
    r"step 2: (loss|grad_norm|param_norm) is (nan|inf); "
    rf"{good} in {folder}; lower the learning rate",
  )
  assert [path.name for path in (folder / "checkpoints").iterdir()] == saved
  assert Recorder.seen == [True, True]  # steps 0 and 1
  assert [m["step"] for m in read_metrics(folder)] == [0, 1]


def test_skipped_and_cut_examples_are_counted(
  tiny, afresh, main, reuse_steps, read_metrics, monkeypatch
):
  data = afresh / "data"
  (data / "train4.png").unlink()
  replace_line(data / "train.jsonl", 9, "{")
  edit(data / "train.jsonl", 2, suffix="what digit is this " * 9)
  config = make_config(
    tiny, afresh, {"train.on_bad": "skip", "train.too_long": "truncate"}
  )
  folder = afresh / "new"
  with monkeypatch.context() as patch:
    patch.setattr(
      preemption.Preemption, "requested", lambda self, step: step == STOPPED
    )
    assert main(config, folder) is None
  assert main(config, folder) is None

  plan = Plan(config)
  tokenizer = plan.task.make_tokenizer(config, plan.model)
  batches = inputs.train_batches(config, plan.sources, tokenizer)
  skipped = truncated = 0
  lines = read_metrics(folder)
  assert [line["step"] for line in lines] == list(range(1, TOTAL + 1))
  for line in lines:
    batch = next(batches)
    skipped += (~batch["_mask"]).sum()
    truncated += batch["truncated"].sum()
    assert (line["skipped"], line["truncated"]) == (skipped, truncated)
    assert line["num_examples"] == batch["_mask"].sum()
  batches.close()
  assert skipped > 4
  assert truncated > 2


def test_evaluators_skip_what_the_training_skips(
  tiny, afresh, main, reuse_steps, read_metrics
):
  (afresh / "data/val2.png").unlink()
  evals_of_all = tiny.config().evals.to_dict()
  for spec in evals_of_all.values():
    spec["source"]["path"] = str(afresh / "data/val.jsonl")
  config = make_config(tiny, afresh, {"evals": evals_of_all})
  line = main(config, afresh / "new")
  assert_one_line(line, r"evals.\w+: 1 of 5 examples looked at cannot be used")
  config.train.on_bad = "skip"
  assert main(config, afresh / "new") is None
  last = read_metrics(afresh / "new")[-1]
  assert (last["val/num_examples"], last["val/num_bad"]) == (4, 1)
  path = afresh / "new/val/predictions.jsonl"
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  assert [x["index"] for x in lines if "error" in x] == [2]
  assert "val.jsonl:3: cannot read image" in lines[2]["error"]
  # What an evaluator says of its own counts for it alone.
  config.evals.val.on_bad = "stop"
  line = main(config, afresh / "new")
  assert_one_line(line, "evals.val: 1 of 5 examples looked at cannot be used")


# Questions from the start on: between batches of evaluations, one a step, and
# in the final export.
@pytest.mark.parametrize("questions", [1, 3, 5, 7, 12, 25, 31, 50])
def test_stopped_anywhere_it_goes_on_as_if_nothing_had_been(
  tiny, afresh, main, reuse_steps, read_metrics, monkeypatch, capfd, questions
):
  evals_of_all = tiny.config().evals.to_dict()
  for spec in evals_of_all.values():
    spec |= {"every_percent": None, "every_steps": 2}
  values = {"evals": evals_of_all, "checkpoint_percent": 0.5}
  config = make_config(tiny, afresh, values)
  whole = afresh / "whole"
  if not whole.exists():
    assert main(config, whole) is None
  asked = 0

  def requested(self, step):
    nonlocal asked
    asked += 1
    return asked == questions

  folder = afresh / "stopped"
  with monkeypatch.context() as patch:
    patch.setattr(preemption.Preemption, "requested", requested)
    capfd.readouterr()
    assert main(config, folder) is None
    assert asked == questions, "ended before it was asked to stop"
    *_, said, page = capfd.readouterr().err.splitlines()
    assert re.match(r"stopped at step \d: (saved, )?start again to res", said)
    assert page == f"wrote {folder}/report.html"
    assert not (folder / "final.npz").exists()
    assert not list(folder.glob("**/*.tmp"))
    assert not (folder / "trainer.lock").exists()
  assert main(config, folder) is None
  final = (whole / "final.npz").read_bytes()
  assert (folder / "final.npz").read_bytes() == final
  lines = [
    [{k: v for k, v in line.items() if k in EQUAL} for line in read_metrics(at)]
    for at in (whole, folder)
  ]
  assert lines[0] == lines[1]
  predictions = [
    (at / "val/predictions.jsonl").read_bytes() for at in (whole, folder)
  ]
  assert predictions[0] == predictions[1]


@pytest.mark.parametrize("bad", [2, TOTAL])
def test_a_batch_is_read_during_the_step_before_and_its_error_told_after_it(
  tiny, afresh, main, reuse_steps, read_metrics, monkeypatch, bad
):
  """Batch `bad` cannot be read. That of number TOTAL is for no step."""
  read, log, events = TrainBatches.__next__, Loop.log, []

  def reads(self):
    events.append(number := self.get_state()["next_batch"])
    if number == bad:
      raise ValueError("a.jsonl:3: bad")
    return read(self)

  def logs(self, step, *rest):
    events.append(f"step {step}")
    return log(self, step, *rest)

  monkeypatch.setattr(TrainBatches, "__next__", reads)
  monkeypatch.setattr(Loop, "log", logs)
  folder = afresh / "new"
  error = main(make_config(tiny, afresh), folder)
  assert error == ("error: a.jsonl:3: bad" if bad < TOTAL else None)
  expected = [0]
  for step in range(1, bad + 1):
    expected += [step, f"step {step}"]
  assert events == [event for event in expected if event != TOTAL]
  assert [line["step"] for line in read_metrics(folder)] == list(
    range(1, bad + 1)
  )
  assert (folder / "checkpoints" / str(bad)).exists()


@pytest.mark.parametrize(
  ("config", "folder", "message"),
  [
    ("configs/transfers/forkme.py", "", "no --workdir given"),
    ("no/such.py", "--workdir=a", "--config no/such.py: no such file"),
  ],
)
def test_bad_command(processes, config, folder, message):
  arguments = filter(None, [f"--config={config}", folder])
  status, output = processes.finish(processes.start(*arguments))
  assert status == 1
  first, line = output.splitlines()
  assert first == "starting: importing JAX"
  assert_one_line(line, message)
