"""The best weights of a run, and runs that end early."""

import json
import math
import shutil

import numpy as np
import pytest

import paligemma
from paligemma import tree
from paligemma.checkpoints import npz
from scripts import evaluate
from trainers import report, status, train
from trainers.best import Best

SCORE = "pplx/perplexity"


class Scored:
  """An evaluator, as far as Best looks at it."""

  def __init__(self, name, **higher_is_better):
    self.name, self.higher_is_better = name, higher_is_better


def make(tiny, name="val/acc", *, early_stop=None, **values):
  config = tiny.config({"keep_best": name, "early_stop": early_stop, **values})
  evaluators = [Scored("val", acc=True, wrong=False), Scored("own")]
  return Best(config, [(evaluator, None) for evaluator in evaluators])


@pytest.mark.parametrize(
  ("name", "scores", "best", "stalled_after"),
  [
    ("val/acc", [0.1, 0.3, 0.3, 0.2, 0.4], 4, 3),
    ("val/wrong", [3.0, 2.0, 2.0, 1.0, 9.0], 3, None),
    ("val/acc", [math.nan, math.nan, 0.0, -1.0, math.inf], 4, None),
    ("val/acc", [math.nan] * 5, 0, 2),
    ("own/any", [1.0, 2.0, 3.0, 2.0, 1.0], 2, 4),
  ],
)
def test_first_of_the_best_and_how_long_ago(
  tiny, name, scores, best, stalled_after
):
  found, again = make(tiny, name, early_stop=2), make(tiny, name, early_stop=2)
  stalled = None
  for step, score in enumerate(scores):
    is_better = found.is_improved_by(step, score)
    found.add(step, score)
    found.add(step, score)  # evaluated again after a restart
    assert is_better == (found.step == step)
    # What a checkpoint holds is all there is to know.
    again = make(tiny, name, early_stop=2)
    again.restore(json.loads(json.dumps(found.state())))
    assert again.step == found.step
    assert again.has_stopped_improving == found.has_stopped_improving
    if stalled is None and found.has_stopped_improving:
      stalled = step
  assert found.step == best
  assert stalled == stalled_after


def test_another_score_begins_anew(tiny):
  found, other = make(tiny), make(tiny, "val/wrong")
  found.add(3, 0.5)
  other.restore(found.state())
  assert other.step is None
  other.restore({})  # of a checkpoint of before
  assert other.step is None


def test_all_names_of_moving_averages(tiny):
  make(tiny, "val/ema/acc", ema_decay=0.5)
  own = make(tiny, "own/ema/any", ema_decay=0.5)
  assert own.find("own", {"own/any": 0.1}) is None
  assert own.find("own/ema", {"own/ema/any": 0.2}) == 0.2
  with pytest.raises(ValueError, match=r'unknown score of .* "val/ema/acc"'):
    make(tiny, "val/ema/acc")


@pytest.mark.parametrize(
  ("values", "message"),
  [
    (
      {"keep_best": "val/AP50"},
      'unknown score of config.keep_best "val/AP50", expected one of: '
      "pplx/nll_per_example, pplx/nll_per_token, pplx/perplexity, "
      "val/exact_match.",
    ),
    ({"keep_best": "perplexity"}, 'Did you mean "pplx/perplexity"?'),
    ({"keep_best": SCORE, "evals": {}}, "needs an evaluator in config.evals"),
    ({"early_stop": 5}, "config.early_stop needs config.keep_best"),
    ({"keep_best": SCORE, "early_stop": 0}, "config.early_stop is 0, expected"),
    ({"keep_every": 0}, "config.keep_every is 0 with a checkpoint every 2 ste"),
  ],
)
def test_mistakes_end_before_the_training(
  tiny, main, tmp_path, reuse_steps, values, message
):
  assert message in main(tiny.config(values), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_function_shows_its_scores_before_the_first_step(
  tiny, main, tmp_path, reuse_steps, read_metrics
):
  config = tiny.config({"keep_best": "val/lenght"})
  config.evals.val.metric = lambda prediction, example: {"length": 1.0}
  line = main(config, tmp_path)
  assert 'unknown score of config.keep_best "val/lenght", expected one' in line
  assert 'Did you mean "val/length"?' in line
  assert {line["step"] for line in read_metrics(tmp_path)} == {0}


def diverging(tiny, **values):
  """A config whose perplexity falls until step 4 and then explodes."""
  config = tiny.config(
    {
      "keep_best": SCORE,
      "early_stop": 2,
      "learning_rate": 4.0,
      "schedule": ((".*", {"decay": "cosine", "warmup_steps": 12}),),
      "checkpoint_percent": None,
      "checkpoint_steps": 3,
      **values,
    },
    epochs=160 / 13,
    tune="decoder",
  )
  config.evals.val.update(every_percent=None, every_steps=0)
  config.evals.pplx.update(every_percent=None, every_steps=2)
  return config


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
  """The folder of a run that nothing interrupted, and what it said."""
  folder, said = tmp_path_factory.mktemp("whole"), []
  config = diverging(tiny, checkpoint_steps=2, keep_checkpoints=None)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(report.Report, "say", lambda _, text: said.append(text))
    train.train(config, folder)
  return folder, said


def test_the_best_weights_are_kept_and_the_run_ends(whole, read_metrics):
  folder, said = whole
  assert json.loads((folder / "best.json").read_text())["step"] == 4
  lines = read_metrics(folder)
  scores = {line["step"]: line[SCORE] for line in lines if SCORE in line}
  assert list(scores) == [0, 2, 4, 6, 8]
  assert min(scores, key=scores.get) == 4
  assert json.loads((folder / "best.json").read_text()) == {
    "score": SCORE,
    "value": scores[4],
    "step": 4,
  }
  # What otherwise runs after the last step alone has run after this one.
  assert [x["step"] for x in lines if "val/exact_match" in x] == [8]
  for name, step in (("best", 4), ("final", 8)):
    found = npz.load(folder / f"{name}.npz")
    _, expected = paligemma.load(folder / f"checkpoints/{step}")
    expected = tree.flatten(expected)
    assert found.keys() == expected.keys()
    for leaf, array in expected.items():
      np.testing.assert_array_equal(found[leaf], array, err_msg=leaf)
  assert said[-1] == f"best {SCORE}: {scores[4]:.5g}, at step 4"
  assert (
    "step 8: the run ends early, as the last 2 evaluations gave no better "
    f"{SCORE}" in said
  )


def test_all_checkpoints_are_evaluated(tiny, whole, read_metrics):
  config = diverging(tiny)
  found = evaluate.evaluate_all(config, whole[0], resamples=0)
  scores = {x["step"]: x for x in read_metrics(whole[0]) if SCORE in x}
  assert list(found) == ["2", "4", "6", "8", "best.npz"]
  for name, values in found.items():
    step = 4 if name == "best.npz" else int(name)
    assert values[SCORE] == pytest.approx(scores[step][SCORE], rel=1e-5)
  lines = evaluate.table_of_checkpoints(found)
  assert len(lines) == 1 + len(found)
  assert lines[0].split()[:2] == ["checkpoint", SCORE]
  assert lines[2].split()[:2] == ["4", f"{scores[4][SCORE]:.5g}"]
  with pytest.raises(ValueError, match="val: holds no checkpoint, expected th"):
    evaluate.evaluate_all(config, whole[0] / "val")


class Killed(BaseException):
  pass


def writing(stem):
  """Kills the writer of the third file of that name, half way."""
  count = 0

  def patch(monkeypatch):
    save = npz.save

    def dying(path, arrays, **stated):
      nonlocal count
      if path.stem == stem:
        count += 1
      if (path.stem, count) != (stem, 3 if stem == "best" else 1):
        return save(path, arrays, **stated)

      def some():
        yield next(iter(arrays))
        raise Killed

      return save(path, some(), **stated)

    monkeypatch.setattr(npz, "save", dying)

  return patch


def at(method, step):
  """Kills the run when a method of Best is called for a step."""

  def patch(monkeypatch):
    original = getattr(Best, method)

    def dying(self, *arguments):
      if step in arguments:
        raise Killed
      return original(self, *arguments)

    monkeypatch.setattr(Best, method, dying)

  return patch


@pytest.mark.parametrize(
  "moment",
  [
    pytest.param(writing("best"), id="while the best is written"),
    pytest.param(at("write", 4), id="before its score is written"),
    pytest.param(at("add", 4), id="before the score counts"),
    pytest.param(at("add", 6), id="after it was the best"),
    pytest.param(at("add", 8), id="before it stops"),
    pytest.param(writing("final"), id="while the last is written"),
  ],
)
def test_killed_and_resumed_keeps_the_same_and_stops_at_the_same_step(
  tiny, whole, moment, tmp_path, read_metrics, reuse_steps, monkeypatch
):
  with monkeypatch.context() as patch:
    moment(patch)
    with pytest.raises(Killed):
      train.train(diverging(tiny), tmp_path)
  assert not (tmp_path / "final.npz").exists()
  for _ in range(2):  # once more than is needed
    train.train(diverging(tiny), tmp_path)
    for name in ("best.npz", "best.json", "final.npz"):
      found, expected = (f / name for f in (tmp_path, whole[0]))
      assert found.read_bytes() == expected.read_bytes(), name
    scores = [
      [x for x in read_metrics(f) if "loss" not in x]
      for f in (tmp_path, whole[0])
    ]
    assert scores[0] == scores[1]


def test_goes_on_with_more_patience(
  tiny, whole, tmp_path, reuse_steps, read_metrics
):
  shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
  train.train(diverging(tiny, early_stop=3), tmp_path)
  scores = [x for x in read_metrics(tmp_path) if "loss" not in x]
  assert [x["step"] for x in scores if SCORE in x] == [0, 2, 4, 6, 8, 10]
  assert [x["step"] for x in scores if "val/exact_match" in x] == [10]
  assert status.read(tmp_path).state == "ended early"
  assert json.loads((tmp_path / "best.json").read_text())["step"] == 4


def test_every_nth_checkpoint_and_the_last_ones_stay(
  tiny, tmp_path, reuse_steps
):
  config = tiny.config(
    {"evals": {}, "keep_every": 2, "keep_checkpoints": 1}, epochs=72 / 13
  )
  config.update(checkpoint_percent=None, checkpoint_steps=2)
  train.train(config, tmp_path)
  steps = sorted(int(x.name) for x in (tmp_path / "checkpoints").iterdir())
  assert steps == [4, 8, 9]
