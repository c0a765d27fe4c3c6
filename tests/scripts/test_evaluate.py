"""A checkpoint evaluated: numbers of a run, resumed, on two processes."""

import json
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from paligemma import evals, metrics, tree
from paligemma.checkpoints import npz
from paligemma.evals import predictions
from scripts import evaluate as command
from trainers import evaluation, inputs, start, workdir
from trainers.plan import Plan


def run(config, tiny, ckpt=None, **arguments):
  """{name of the evaluator: (examples, scores)}."""
  arguments.setdefault("resamples", 0)
  found = command.evaluate(config, ckpt or tiny.weights, **arguments)
  return {name: (count, scores) for name, count, scores in found}


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
  """The file of an evaluation that nothing interrupted."""
  path = tmp_path_factory.mktemp("whole") / "y.jsonl"
  run(tiny.config(), tiny, split="val", out=path)
  return path


def test_numbers_are_those_of_the_trainer(tiny, tmp_path):
  config = tiny.config(metric=Length())
  found = run(config, tiny)
  # As the trainer: weights as a run starts with them, evaluators of the config.
  config.train.sources.main.path = config.evals.val.source.path
  config.init = str(tiny.weights)
  plan = Plan(config)
  state, frozen = start.start_or_resume(plan, _NoCheckpoints(), None)
  params = jax.tree.map(np.asarray, {**state.trainable, **frozen})
  assert found.keys() == {"pplx", "val"}
  tok = plan.task.make_tokenizer(config, plan.model)
  for evaluator, _ in inputs.make_evaluators(config, tok, **plan.sizes):
    scores = evaluator.run(
      plan.model,
      tree.unflatten(params),
      plan.mesh,
      output_dir=tmp_path,
      rng=jax.random.key(0),
    )
    count, ours = found[evaluator.name]
    assert count == scores["num_examples"] == 23
    for name, estimate in ours.items():
      assert estimate.value == pytest.approx(scores[name], rel=1e-5), name


class _NoCheckpoints:
  def latest_step(self):
    return None


class Length(metrics.Metric):
  """Something in which random predictions differ."""

  def score(self, prediction, example, answer_key):
    return {"length": float(len(prediction)), "odd": example["number"] % 2.0}


def test_every_score_has_an_interval(tiny):
  found = run(tiny.config(metric=Length()), tiny, resamples=50)
  for scores in (found["pplx"][1], found["val"][1]):
    for name, estimate in scores.items():
      if not name.startswith("num"):
        assert estimate.low < estimate.value < estimate.high, name
  assert found["val"][1].keys() == {"length", "odd", "num"}
  assert found["val"][1]["odd"].value == pytest.approx(11 / 23)


def test_limit_and_batch_size(tiny, tmp_path, whole, capsys):
  path = tmp_path / "y.jsonl"
  found = run(
    tiny.config(), tiny, split="val", limit=7, batch_size=16, out=path
  )
  said = capsys.readouterr().err.splitlines()
  stages = [line.split(":")[0] for line in said if line.endswith(" ...")]
  assert stages == ["reading the weights", "checking the data ...", "val"]
  assert found["val"][0] == 7
  lines, others = (
    [(line["index"], line["prediction"]) for line in predictions.read(p, n)]
    for p, n in ((path, 7), (whole, 23))
  )
  assert lines == others[:7]
  assert len({prediction for _, prediction in others}) > 5


def test_all_batches_have_one_shape(tiny):
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, _, **__: compiled.append(name) if "compile" in name else None
  )
  try:
    jax.clear_caches()
    run(tiny.config(), tiny, limit=8)
    assert any("backend_compile" in name for name in compiled)
    del compiled[:]
    # Two more batches, of which the last has one row alone.
    run(tiny.config(), tiny, limit=17)
    assert not [name for name in compiled if "backend_compile" in name]
  finally:
    jax.monitoring.clear_event_listeners()


def test_a_file_is_resumed(tiny, whole, tmp_path):
  path = tmp_path / "y.jsonl"
  lines = whole.read_bytes().splitlines(keepends=True)
  path.write_bytes(b"".join(lines[:9]) + lines[9][:20])
  settings = whole.with_name("y.jsonl.settings").read_bytes()
  path.with_name("y.jsonl.settings").write_bytes(settings)
  found = run(tiny.config(), tiny, split="val", out=path)
  assert path.read_bytes() == whole.read_bytes()
  again = run(tiny.config(), tiny, split="val", out=path)
  assert again == found


def changed_weights(tiny, tmp_path):
  params = npz.load(tiny.weights)
  params["img/head/bias"] = params["img/head/bias"] + 1
  npz.save(tmp_path / "other.npz", params)
  return tmp_path / "other.npz"


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("text_len", 23, "preprocess/text_len was 19, now 23"),
    ("seed", 1, "seed was 0, now 1"),
    ("evals.val.max_decode_len", 4, "max_decode_len was 3, now 4"),
    ("evals.val.sampler", "beam(beam_size=2)", 'sampler was "greedy", now "b'),
    ("evals.val.grammar", "choices('a')", r"grammar was null, now \"choices"),
    ("evals.val.limit", 5, "limit was null, now 5"),
    ("model.llm.query_scale", 0.5, "model/llm/query_scale was nothing, now 0."),
    ("weights", None, 'checkpoint was "sha256:[0-9a-f]+", now "sha256:'),
    ("data", None, 'data/contents was "sha256:[0-9a-f]+", now "sha256:'),
  ],
)
def test_other_settings_are_refused(
  tiny, whole, tmp_path, name, value, message
):
  config = tiny.config()
  ckpt = tiny.weights
  if name == "weights":
    ckpt = changed_weights(tiny, tmp_path)
  elif name == "data":
    lines = tiny.data.read_text().replace("what", "which")
    other = tiny.folder / "other.jsonl"
    other.write_text(lines)
    config.evals.val.source.path = str(other)
  else:
    with config.unlocked():
      config.update_from_flattened_dict({name: value})
  before = whole.read_bytes()
  with pytest.raises(ValueError, match=f"other settings .*{message}"):
    run(config, tiny, ckpt, split="val", out=whole)
  assert whole.read_bytes() == before


def test_what_changes_no_prediction_is_no_other_setting(tiny, whole):
  config = tiny.config(metric="anls", every_percent=0.5)
  config.learning_rate = 7.0
  found = run(config, tiny, split="val", out=whole)
  assert "anls" in found["val"][1]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"split": "vall"}, 'unknown split "vall".*Did you mean "val"'),
    ({"split": "pplx", "out": "y.jsonl"}, "that generate are: none"),
    ({"ckpt": "no.npz"}, "no.npz: "),
    ({"batch_size": 3}, "batch_size 3 is not divisible by the 8"),
    ({"limit": 0}, "limit is 0"),
  ],
)
def test_errors(tiny, arguments, message):
  with pytest.raises(ValueError, match=message):
    run(tiny.config(), tiny, **arguments)


def test_two_evaluators_need_two_files(tiny):
  config = tiny.config()
  with config.unlocked():
    config.evals.test = config.evals.val.copy_and_resolve_references()
  with pytest.raises(
    ValueError, match="generate are: test, val; name one with"
  ):
    run(config, tiny, out="y.jsonl")


def test_nothing_to_evaluate(tiny):
  config = tiny.config()
  with config.unlocked():
    config.evals = {}
  with pytest.raises(ValueError, match=r"config.evals is empty"):
    run(config, tiny)


def test_evaluators_do_not_open_the_training_data(tiny):
  made = evaluation.make_evaluators(tiny.config(every_percent=0.5), None)
  assert [type(e) for e in made] == [evals.Perplexity, evals.Generate]


def test_two_processes_write_the_file_of_one(tiny, tmp_path):
  """The command itself, on one process of two devices and on two of one."""
  arguments = (
    f"--config={tiny.arguments}",
    f"--ckpt={tiny.weights}",
    "--config.evals.val.sampler=temperature(2.0)",
    "--config.evals.val.metric=anls",
    "--json",
  )
  alone, together = tmp_path / "alone.jsonl", tmp_path / "together.jsonl"
  printed = tiny.run(
    "scripts.evaluate", *arguments, "--split=val", f"--out={alone}"
  )
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    address = f"localhost:{probe.getsockname()[1]}"
  both = [
    subprocess.Popen(
      [
        sys.executable,
        "-m",
        "scripts.evaluate",
        *arguments,
        "--split=val",
        f"--out={together}",
      ],
      cwd=command.__file__.rpartition("/scripts/")[0],
      env={
        **tiny.environment(devices=1),
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(index),
      },
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  try:
    outputs = [process.communicate(timeout=300) for process in both]
  finally:
    for process in both:
      process.kill()
  assert [process.returncode for process in both] == [0, 0], outputs
  assert together.read_bytes() == alone.read_bytes()
  assert "examples" not in outputs[1][0]
  found, expected = (
    json.loads(text.splitlines()[-1]) for text in (outputs[0][0], printed)
  )
  # Their commands differ, so do their bundles.
  for values, path in ((found, together), (expected, alone)):
    name = values["val"].pop("bundle")
    text = path.with_name(f"{path.name}.settings").read_text()
    made = json.loads(text)["bundles"][name]
    assert f"--out={path}" in made["command"]
    assert made["files"]["ckpt"] == workdir.of_file(tiny.weights)
    assert made["files"].keys() >= {"tokenizer", "evals/val/source/path"}
    assert not any(x.startswith("train/") for x in made["files"])
    assert made["run"] is None
  assert found == expected
  assert found["val"]["examples"] == 23
  anls = found["val"]["scores"]["anls"]
  assert anls["low"] <= anls["value"] <= anls["high"]
  assert "23 examples\nmetric " in printed


def test_published_scores_stand_beside(tiny, monkeypatch, capsys):
  """Of a transfer, though this one evaluates on other data."""
  monkeypatch.setattr(
    "scripts.list_transfers.published", lambda *_: {"exact_match": 0.25}
  )
  arguments = [f"--config={tiny.arguments}", f"--ckpt={tiny.weights}"]
  arguments += ["--split=val", "--limit=4", "--resamples=0", "--json"]
  monkeypatch.setattr("sys.argv", ["evaluate", *arguments])
  monkeypatch.setattr("trainers.gpu_memory.configure", lambda: None)
  monkeypatch.setattr("trainers.compilation_cache.configure", lambda _: None)
  command.main()
  *_, head, row, last = capsys.readouterr().out.splitlines()
  assert head.split() == [
    *("metric", "value", "95%", "interval", "published", "difference")
  ]
  assert row.split() == ["exact_match", "0", "0.2500", "-0.2500"]
  assert json.loads(last)["val"]["published"] == {"exact_match": 0.25}
