"""A run of a SigLIP with its evaluators, and what is made of it later."""

import json
import pathlib

import numpy as np
import pytest

import paligemma
from configs import common
from paligemma import init as init_lib
from paligemma import tree
from paligemma.checkpoints import npz
from paligemma.evals import predictions
from paligemma.models import siglip
from scripts import evaluate
from scripts.make_shapes import make_shapes
from trainers import inputs, run_answers, run_files, train
from trainers.plan import Plan

TOKENIZER = (
  pathlib.Path(__file__).parents[3] / "paligemma/assets/tiny_tokenizer.model"
)
TINY = {"width": 12, "depth": 1, "mlp_dim": 20, "num_heads": 2}
TXT = {**TINY, "vocab_size": 1792, "text_len": 16, "num_classes": 12}


def config_of(folder, **values):
  config = common.defaults("contrastive")
  config.model.update(variant="siglip_tiny", dtype="float32", img=TINY, txt=TXT)
  config.tokenizer = str(TOKENIZER)
  main, val = (
    {"kind": "jsonl", "path": str(folder / f"shapes/{part}.jsonl")}
    for part in ("train", "val")
  )
  config.train.sources.main = main
  config.evals = {
    "zero": {"kind": "zero_shot", "source": val, "answer_key": "label"},
    "both": {"kind": "retrieval", "source": val},
    "few": {
      "kind": "few_shot",
      "source": val,
      "train": main,
      "answer_key": "label",
    },
  }
  config.update(
    res=28,
    batch_size=8,
    total_steps=2,
    optimizer="adam",
    learning_rate=0.01,
    frozen_dtype="float32",
    keep_best="zero/top5_accuracy",
    writers=(),
  )
  config.update(values)
  return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """Config and folder of a run that trains the text tower of a file."""
  folder = tmp_path_factory.mktemp("siglip")
  make_shapes(folder / "shapes", num=200, num_val=24)
  model = siglip.make("siglip_tiny", img=TINY, txt=TXT)
  rng = np.random.default_rng(0)
  flat = {
    name: rng.normal(0, 0.3, leaf.shape).astype(np.float32)
    for name, leaf in init_lib.shapes(model, 28).items()
  }
  npz.save(folder / "start.npz", flat)
  config = config_of(
    folder, init=str(folder / "start.npz"), trainable=("txt/.*", "t", "b")
  )
  assert train.train(config, folder / "run")
  return config, folder / "run"


def test_every_evaluator_has_measured(run):
  config, folder = run
  found = run_files.read(folder).evaluations
  assert found.keys() == {"zero", "both", "few"}
  for name, evaluation in found.items():
    assert evaluation.counts == {0: 24, 2: 24}
    kind = evaluation.kind
    assert kind.__name__.lower() == config.evals[name].kind.replace("_", "")
    assert evaluation.scores.keys() == kind.higher_is_better.keys()
    scored = run_answers.score(evaluation, 2, resamples=20)
    assert evaluation.predicts and not scored.problem
    worst = {record["correct"] for record, _ in run_answers.worst(scored)}
    assert worst == {False}
    for score, values in evaluation.scores.items():
      estimate = scored.estimates[score]
      assert estimate.value == pytest.approx(values[2])
      assert estimate.low <= estimate.value <= estimate.high
  first, last = (found["zero"].scores["accuracy"][step] for step in (0, 2))
  best = json.loads((folder / "best.json").read_text())
  assert best["score"] == "zero/top5_accuracy"
  records = predictions.read(folder / "zero/predictions-2.jsonl", 24)
  assert np.mean([x["correct"] for x in records]) == pytest.approx(last)
  assert {x["label"] for x in records} >= {x["prediction"] for x in records}
  assert 0 <= first <= 1


@pytest.mark.parametrize("of", ["run", "final.npz"])
def test_evaluated_again_the_scores_are_the_same(run, of):
  config, folder = run
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  found = [line for line in map(json.loads, lines) if line["step"] == 2]
  expected = {key: value for line in found for key, value in line.items()}
  ckpt = folder if of == "run" else folder / of
  for name, count, scores in evaluate.evaluate(config, ckpt, resamples=5):
    assert count == 24
    for score, estimate in scores.items():
      assert estimate.value == pytest.approx(expected[f"{name}/{score}"]), score
      assert (estimate.low is None) == score.startswith("num_")


def test_a_run_is_loaded_as_its_file(run):
  _, folder = run
  (one, ours), (two, theirs) = (
    paligemma.load(path) for path in (folder, folder / "final.npz")
  )
  assert one == two
  ours, theirs = tree.flatten(ours), tree.flatten(theirs)
  assert ours.keys() == theirs.keys()
  for name, value in ours.items():
    np.testing.assert_array_equal(value, theirs[name], err_msg=name)
  start = npz.load(folder.parent / "start.npz")
  same = {n for n, x in start.items() if np.array_equal(x, ours[n])}
  assert same >= {n for n in start if n.startswith("img/")}
  assert not same & {"t", "txt/head/kernel"}


@pytest.mark.parametrize("tower", ["img", "txt"])
def test_a_run_from_one_tower(run, tower, tmp_path, capfd):
  _, folder = run
  whole = npz.load(folder.parent / "start.npz")
  own = {n: x for n, x in whole.items() if n.startswith(f"{tower}/")}
  bare = {n.removeprefix("img/"): x for n, x in own.items()}
  if tower == "img":  # as a classifier has it
    bare["head/kernel"] = np.zeros((12, 5), np.float32)
    bare["head/bias"] = np.zeros(5, np.float32)
  npz.save(tmp_path / "tower.npz", bare)
  values = config_of(
    folder.parent,
    init={tower: str(tmp_path / "tower.npz")},
    trainable=("t", "b"),
    evals={},
    keep_best=None,
  )
  assert train.train(values, tmp_path / "run")
  said = capfd.readouterr().err
  assert f"tower.npz gives {tower} alone; all else begins with random" in said
  final = npz.load(tmp_path / "run/final.npz")
  assert final.keys() == whole.keys()
  for name, value in own.items():
    np.testing.assert_array_equal(final[name], value, err_msg=name)
  other = {"img": "txt/head/kernel", "txt": "img/embedding/kernel"}[tower]
  assert not np.array_equal(final[other], whole[other]) and final[other].any()


@pytest.mark.parametrize(
  ("init", "message"),
  [
    ({"txt": "llm.npz"}, r'llm.npz: holds no text tower, nothing under "txt'),
    (
      {"img": "other.npz"},
      r"other.npz: does not fit the model, \d+ leaves d",
    ),
    ({"vit": "llm.npz"}, r"towers of a checkpoint are \['vit'\], expected \"i"),
  ],
)
def test_a_tower_that_does_not_fit(run, init, message, tmp_path):
  npz.save(tmp_path / "llm.npz", {"llm/final_norm/scale": np.ones(3, "f4")})
  model = siglip.make("siglip_tiny", img=TINY | {"mlp_dim": 21}, txt=TXT)
  flat = {
    name: np.zeros(leaf.shape, np.float32)
    for name, leaf in init_lib.shapes(model, 28).items()
    if name.startswith("img/")
  }
  npz.save(tmp_path / "other.npz", flat)
  init = {name: str(tmp_path / file) for name, file in init.items()}
  values = {"init": init, "evals": {}, "keep_best": None, "trainable": ("t",)}
  config = config_of(run[1].parent, **values)
  with pytest.raises(ValueError, match=message) as error:
    train.train(config, tmp_path / "run")
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("evaluator", "values", "message"),
  [
    (
      "zero",
      {"class_names": ("a", "b", "A")},
      r"^class_names\[0\] and class_n",
    ),
    ("zero", {"answer_key": "captions"}, r"^evals\.zero: 24 of 24 examples .*"),
    (
      "few",
      {"answer_key": "lable"},
      r'^evals\.few\.train: 200 of 200 .* "lable", .* Did you mean "label"\?',
    ),
    (
      "both",
      {"source": "captions.jsonl"},
      r"^evals\.both: 1 of 24 .*\.jsonl:3:",
    ),
  ],
)
def test_what_an_evaluator_cannot_read_is_told_before_anything_is_compiled(
  run, evaluator, values, message, tmp_path, monkeypatch
):
  def compiles(plan, text_len=None):
    raise AssertionError("compiled")

  monkeypatch.setattr(Plan, "compile_step", compiles)
  config = config_of(run[1].parent, trainable=("t",))
  if "source" in values:
    path = config.evals[evaluator].source.path
    lines = pathlib.Path(path).read_text().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | {"captions": [None]})
    bad = pathlib.Path(path).with_name(values["source"])
    bad.write_text("\n".join(lines))
    values = {"source": {"kind": "jsonl", "path": str(bad)}}
  config.evals[evaluator].update(values)
  with pytest.raises(ValueError, match=message):
    train.train(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_the_task_of_an_evaluator(run):
  config = common.defaults()
  config.evals.a = dict(run[0].evals.zero.to_dict())
  with pytest.raises(
    ValueError, match=r'evals\.a: kind "zero_shot" is of task "contrastive"'
  ):
    inputs.make_evaluators(config, None)
