import collections
import dataclasses
import json
import math
import random
import re

import jax
import numpy as np
import pytest

from paligemma import evals
from paligemma.data import location, pictures, text_ops
from paligemma.decoding import decode, samplers
from paligemma.evals import generate, predictions
from paligemma.metrics import confidence, exact_match


@pytest.fixture(scope="module")
def evaluator(examples, prompts, tokenizer):
  return evals.Generate(
    "val",
    examples,
    prompts,
    tokenizer,
    batch_size=5,
    max_decode_len=6,
    metric=None,
  )


@pytest.fixture(scope="module")
def run(model, params, one_device, tmp_path_factory):
  """Runs an evaluator and returns (scores, lines of the predictions)."""

  def run(evaluator, *, mesh=one_device, output_dir=None, **arguments):
    output_dir = output_dir or tmp_path_factory.mktemp("out")
    scores = evaluator.run(
      model, params, mesh, output_dir=output_dir, **arguments
    )
    path = output_dir / evaluator.name / "predictions.jsonl"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    lines = path.read_bytes().splitlines()
    return scores, [json.loads(line) for line in lines]

  return run


@pytest.fixture(scope="module")
def plain(evaluator, run):
  """Lines of the evaluator on a single device."""
  return run(evaluator)[1]


def column(lines, key):
  return [line[key] for line in lines]


def assert_same(lines, others):
  assert column(lines, "prediction") == column(others, "prediction")
  np.testing.assert_allclose(
    column(lines, "score"), column(others, "score"), atol=1e-4
  )


def test_lines_hold_example_and_prediction(plain, examples):
  assert len(set(column(plain, "prediction"))) > 5  # else nothing is tested
  for i, (line, example) in enumerate(zip(plain, examples, strict=True)):
    assert line["score"] < 0
    line = {k: v for k, v in line.items() if k != "confidences"}
    assert line == {
      "prefix": example["prefix"],
      "suffix": example["suffix"],
      "question_id": 100 + i,
      "image": f"{i}.png",
      "where": f"x.jsonl:{i + 1}",
      "index": i,
      "prediction": line["prediction"],
      "score": line["score"],
      "correct": False,
    }


def test_predictions_are_those_of_decode(
  plain, examples, prompts, tokenizer, model, params
):
  row = prompts(examples[3], np.random.default_rng(0))
  batch = {key: value[None] for key, value in row.items()}
  decoded = decode.generate(model, params, batch, max_decode_len=6)
  prediction = tokenizer.decode(np.asarray(decoded.tokens[0]))
  assert plain[3]["prediction"] == prediction
  assert plain[3]["score"] == pytest.approx(
    float(decoded.log_probs.sum()), abs=1e-4
  )


def test_batch_size_and_padding_change_nothing(evaluator, run, plain):
  # Batches of 5, the last one with 4 rows of padding, against none at all.
  alone = dataclasses.replace(evaluator, batch_size=1)
  assert_same(run(alone)[1], plain)


def test_sharded_is_single_device(evaluator, run, plain, eight_devices):
  other = dataclasses.replace(evaluator, batch_size=8)
  assert_same(run(other, mesh=eight_devices)[1], plain)


def test_predictions_do_not_depend_on_the_answers(evaluator, run, plain):
  suffixes = column(evaluator.source, "suffix")
  moved = [
    example | {"suffix": suffix}
    for example, suffix in zip(
      evaluator.source, suffixes[1:] + suffixes[:1], strict=True
    )
  ]
  lines = run(dataclasses.replace(evaluator, source=moved))[1]
  assert column(lines, "suffix") == column(moved, "suffix")
  assert column(lines, "prediction") == column(plain, "prediction")
  assert column(lines, "score") == column(plain, "score")


def test_a_source_without_answers_can_be_predicted(evaluator, run, plain):
  bare = [
    {key: example[key] for key in ("image", "prefix")}
    for example in evaluator.source
  ]
  scores, lines = run(dataclasses.replace(evaluator, source=bare))
  assert scores == {"num_examples": 11}
  assert column(lines, "prediction") == column(plain, "prediction")
  assert "correct" not in lines[0]


@pytest.fixture(scope="module")
def right_at(plain, evaluator):
  """An evaluator whose answers are right at indices 0, 4, 5 and 10 alone."""
  source = [
    example
    | {"suffix": plain[i]["prediction"] if i in (0, 4, 5, 10) else "wrong!"}
    for i, example in enumerate(evaluator.source)
  ]
  return dataclasses.replace(evaluator, source=source, metric="exact_match")


def test_metric_is_over_all_examples(right_at, run):
  scores, lines = run(right_at)
  assert scores == {"exact_match": pytest.approx(4 / 11), "num_examples": 11}
  assert np.flatnonzero(column(lines, "correct")).tolist() == [0, 4, 5, 10]


def test_limit(right_at, run):
  scores, lines = run(dataclasses.replace(right_at, limit=7))
  assert scores == {"exact_match": pytest.approx(3 / 7), "num_examples": 7}
  assert column(lines, "index") == list(range(7))


def test_answers_are_those_after_the_ops(right_at, run, prompts):
  source = [
    {key: value for key, value in example.items() if key != "suffix"}
    | {"answer": example["suffix"].upper()}
    for example in right_at.source
  ]
  ops = (text_ops.Format("{prefix}", "{answer}"),)
  other = dataclasses.replace(
    right_at,
    source=source,
    preprocess=dataclasses.replace(prompts, ops=ops),
    metric=exact_match.ExactMatch(lower=True),
  )
  assert run(other)[0]["exact_match"] == pytest.approx(4 / 11)
  by_key = dataclasses.replace(
    other, answer_key="answer", preprocess=prompts, source=source
  )
  assert run(by_key)[0]["exact_match"] == pytest.approx(4 / 11)


def test_drawn_predictions_follow_the_rng(evaluator, run, plain):
  drawing = dataclasses.replace(evaluator, sampler=samplers.Temperature(2.0))
  first, again, other = (
    column(run(drawing, rng=jax.random.key(seed))[1], "prediction")
    for seed in (0, 0, 1)
  )
  assert first == again
  assert first != other


def test_batches_draw_apart(evaluator, run):
  # The same example everywhere: batches differ by their key alone.
  drawing = dataclasses.replace(
    evaluator,
    source=[evaluator.source[0]] * 10,
    sampler=samplers.Temperature(2.0),
  )
  drawn = column(run(drawing, rng=jax.random.key(0))[1], "prediction")
  assert drawn[:5] != drawn[5:]


def test_draws_and_grammars_are_those_of_one_batch_at_a_time(
  evaluator, run, monkeypatch
):
  drawing = dataclasses.replace(
    evaluator,
    source=[evaluator.source[i % 11] for i in range(23)],
    sampler="temperature(2.0)",
    grammar='regex("[a-z]+")',
  )
  together = run(drawing, rng=jax.random.key(0))[1]
  each = generate.Generate._decode_each
  monkeypatch.setattr(generate.Generate, "_decode_together", each)
  apart = run(drawing, rng=jax.random.key(0))[1]
  answers = column(together, "prediction")
  assert answers == column(apart, "prediction")
  assert all(re.fullmatch("[a-z]+", answer) for answer in answers)
  assert len(set(answers)) > 15


def test_sampler_of_a_config(evaluator, run, model, params, prompts, tokenizer):
  lines = run(dataclasses.replace(evaluator, sampler="beam(beam_size=2)"))[1]
  rows = [
    prompts(example, np.random.default_rng(0)) for example in evaluator.source
  ]
  decoded = decode.generate(
    model,
    params,
    {key: np.stack([row[key] for row in rows]) for key in rows[0]},
    max_decode_len=6,
    sampler=samplers.Beam(2),
  )
  tokens = [
    ids[:n] for ids, n in zip(decoded.tokens, decoded.num_tokens, strict=True)
  ]
  texts = [tokenizer.decode(np.asarray(ids)) for ids in tokens]
  assert column(lines, "prediction") == texts
  np.testing.assert_allclose(column(lines, "score"), decoded.score, atol=1e-4)


class Counted(list):
  """A source that counts how often each of its examples is read."""

  def __init__(self, *arguments):
    super().__init__(*arguments)
    self.reads = collections.Counter()

  def __getitem__(self, index):
    self.reads[index] += 1
    return super().__getitem__(index)


def test_an_example_is_read_once(evaluator, run):
  source = Counted(evaluator.source)
  scored = dataclasses.replace(evaluator, source=source, metric="exact_match")
  run(scored)
  assert source.reads == dict.fromkeys(range(11), 1)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_metrics_see_the_example_after_the_ops(
  evaluator, run, prompts, num_workers
):
  seen = []

  def keep(texts, examples, *, answer_key):
    seen.extend(examples)
    return {"texts": float(len(texts))}

  ops = (text_ops.Format("a {prefix}", "{question_id}"),)
  scores, lines = run(
    dataclasses.replace(
      evaluator,
      metric=keep,
      preprocess=dataclasses.replace(prompts, ops=ops),
      num_workers=num_workers,
    )
  )
  assert scores == {"texts": 11, "num_examples": 11}
  assert [x["suffix"] for x in seen] == [str(100 + i) for i in range(11)]
  assert column(lines, "suffix") == [x["suffix"] for x in seen]
  assert all(isinstance(x["pixels"], np.ndarray) for x in seen)
  assert not any("image" in x for x in seen)
  # What the model saw has been through the ops once.
  written = [x | {"prefix": f"a {x['prefix']}"} for x in evaluator.source]
  others = run(dataclasses.replace(evaluator, source=written))[1]
  assert column(lines, "prediction") == column(others, "prediction")


SETTINGS = {"made": "with this"}


class Killed(BaseException):
  """Nothing but the operating system catches it."""


@pytest.fixture
def predict(model, params, one_device, tmp_path):
  """Predicts into a file; stopped after so many more bytes, half a line too."""

  def predict(evaluator, name, stop_after=None, **arguments):
    with pytest.MonkeyPatch.context() as patch:
      if stop_after is not None:
        patch.setattr(predictions, "appending", appending_until(stop_after))
      return evaluator.predict(
        model,
        params,
        one_device,
        path=tmp_path / name,
        settings=SETTINGS,
        **arguments,
      )

  def appending_until(left):
    def appending(path):
      return Breaking(path, left)

    return appending

  return predict


class Breaking:
  """What predictions.appending gives, broken off after so many bytes."""

  def __init__(self, path, left):
    self._path, self._left = path, left

  def __enter__(self):
    return self.append

  def __exit__(self, *error):
    pass

  def append(self, records):
    before = self._path.stat().st_size if self._path.exists() else 0
    with APPENDING(self._path) as append:
      append(records)
    data = self._path.read_bytes()
    if len(data) - before > self._left:
      self._path.write_bytes(data[: before + self._left])
      raise Killed
    self._left -= len(data) - before


APPENDING = predictions.appending


@pytest.mark.parametrize("sampler", ["greedy", "temperature(2.0)"])
def test_killed_again_and_again_the_file_is_the_same(
  evaluator, predict, tmp_path, sampler
):
  drawing = dataclasses.replace(
    evaluator, sampler=sampler, metric="exact_match"
  )
  arguments = {"rng": jax.random.key(0)}
  whole = predict(drawing, "whole.jsonl", **arguments)
  expected = (tmp_path / "whole.jsonl").read_bytes()
  dice, kills = random.Random(0), 0
  while kills < 12:
    (tmp_path / "y.jsonl").unlink(missing_ok=True)
    resumed = None
    while resumed is None:
      try:
        stop_after = dice.randrange(len(expected) // 2)
        resumed = predict(drawing, "y.jsonl", stop_after, **arguments)
      except Killed:
        kills += 1
    assert (tmp_path / "y.jsonl").read_bytes() == expected
    assert resumed[0] == whole[0]
    # Read again, the examples are those that came with the batches.
    for one, other in zip(resumed[1], whole[1], strict=True):
      assert one.keys() == other.keys()
      assert one["prefix"] == other["prefix"]


class Damaged:
  """A source some of whose examples cannot be read."""

  def __init__(self, source, bad):
    self.source, self.bad = source, bad

  def __len__(self):
    return len(self.source)

  def __getitem__(self, index):
    if index in self.bad:
      raise ValueError(f"x.jsonl:{index + 1}: no image")
    return self.source[index]


def test_a_bad_example_is_an_error_or_is_named_and_has_no_score(
  evaluator, run, plain, caplog
):
  bad = (2, 5, 10)  # the last one of the source among them
  damaged = dataclasses.replace(
    evaluator, source=Damaged(evaluator.source, bad), metric="exact_match"
  )
  with pytest.raises(ValueError, match=r"^x.jsonl:3: no image$"):
    run(damaged)
  skipping = dataclasses.replace(damaged, on_bad="skip")
  scores, lines = run(skipping)
  assert column(lines, "index") == list(range(11))
  for index in bad:
    error = f"x.jsonl:{index + 1}: no image"
    assert lines[index] == {"index": index, "error": error}
    assert f"skipped a bad example: {error}" in caplog.text
  good = [line for line in lines if "error" not in line]
  assert_same(good, [line for line in plain if line["index"] not in bad])
  right = sum(line["correct"] for line in good)
  assert scores["exact_match"] == right / 8
  assert (scores["num_examples"], scores["num_bad"]) == (8, 3)
  # Data workers are other processes; what is wrong must come back from them.
  assert run(dataclasses.replace(skipping, num_workers=2)) == (scores, lines)


def test_no_good_example_is_an_error(evaluator, run):
  damaged = dataclasses.replace(
    evaluator,
    source=Damaged(evaluator.source, range(11)),
    on_bad="skip",
    metric="exact_match",
  )
  message = "none of 11 examples can be used, the first: x.jsonl:1: no image"
  with pytest.raises(ValueError, match=message):
    run(damaged)


def test_a_file_with_bad_examples_is_resumed(evaluator, predict, tmp_path):
  skipping = dataclasses.replace(
    evaluator,
    source=Damaged(evaluator.source, (1, 7)),
    on_bad="skip",
    metric="exact_match",
  )
  whole = predict(skipping, "y.jsonl")
  path = tmp_path / "y.jsonl"
  data = path.read_bytes()
  path.write_bytes(b"".join(data.splitlines(keepends=True)[:7]))
  again = predict(skipping, "y.jsonl")
  assert path.read_bytes() == data
  assert again[0] == whole[0]
  assert [x is None for x in again[1]] == [i in (1, 7) for i in range(11)]


@pytest.mark.parametrize("together", [1, 2, 16])
def test_resuming_decodes_only_what_is_left(
  evaluator, predict, tmp_path, monkeypatch, together
):
  monkeypatch.setattr(generate, "_TOGETHER", together)
  done = []
  predict(evaluator, "y.jsonl", progress=lambda *at: done.append(at))
  assert done == [(0, 11), (5, 11), (10, 11), (11, 11)]
  path = tmp_path / "y.jsonl"
  whole = path.read_bytes()
  path.write_bytes(b"".join(whole.splitlines(keepends=True)[:7]))
  del done[:]
  predict(evaluator, "y.jsonl", progress=lambda *at: done.append(at))
  assert done == [(5, 11), (10, 11), (11, 11)]
  assert path.read_bytes() == whole
  del done[:]
  source = Counted(evaluator.source)
  complete = dataclasses.replace(evaluator, source=source)
  predict(complete, "y.jsonl", progress=lambda *at: done.append(at))
  assert done == [(11, 11)]
  assert not source.reads  # nor what only a metric would want


def test_confidences_are_those_of_the_locations(tokenizer):
  loc = [tokenizer.loc_id(i) for i in (7, 11, 513, 1023)]
  words = tokenizer.encode(" cat ; ")
  ids = [*loc, *words, *loc, *tokenizer.encode(" é\n"), tokenizer.eos_id]
  log_probs = -np.arange(1, len(ids) + 1) / 10
  first, second = confidence.of_boxes(tokenizer.pieces(ids), log_probs)
  assert first == pytest.approx(math.exp(-(1 + 2 + 3 + 4) / 40))
  start = 4 + len(words)
  assert second == pytest.approx(math.exp(log_probs[start : start + 4].mean()))
  pieces = tokenizer.pieces(tokenizer.encode("no box"))
  assert confidence.of_boxes(pieces, [0.0] * len(pieces)) == []


def test_confidences_reach_the_metric(evaluator, run):
  seen = {}

  def metric(texts, examples, *, answer_key, confidences):
    seen.update(zip(texts, confidences, strict=True))
    return {}

  grammar = 'boxes(["red"], at_most=1)'
  lines = run(dataclasses.replace(evaluator, metric=metric, grammar=grammar))[1]
  assert len(seen) > 1
  for line in lines:
    assert line["confidences"] == seen[line["prediction"]]
    (thing,) = location.parse(line["prediction"], (10, 10))
    assert (thing.label, thing.problem) == ("red", "")
    assert 0 < line["confidences"][0] < 1


def test_running_again_compiles_nothing(evaluator, run, plain, params):
  compiled = decode.program.num_compiled()
  run(evaluator)
  assert decode.program.num_compiled() == compiled


def test_nothing_is_written_without_a_folder(
  evaluator, model, params, one_device, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  evaluator.run(model, params, one_device)
  assert not list(tmp_path.iterdir())


def test_predictions_survive_a_later_failure(
  evaluator, run, tmp_path, supervised
):
  run(evaluator, output_dir=tmp_path)
  path = tmp_path / "val" / "predictions.jsonl"
  before = path.read_text()
  leaking = dataclasses.replace(evaluator, preprocess=supervised)
  with pytest.raises(ValueError, match="has mask_loss: its text holds the ans"):
    run(leaking, output_dir=tmp_path)
  assert path.read_text() == before


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"metric": "exactmatch"}, 'Did you mean "exact_match"'),
    ({"sampler": "gredy"}, 'Did you mean "greedy"'),
    ({"sampler": "nucleus"}, "give generate an rng"),
    ({"sampler": "nuclues"}, 'unknown sampler "nuclues"'),
    ({"batch_size": 0}, "batch_size is 0, expected 1 or more"),
    ({"grammar": "choice('a')"}, 'Did you mean "choices"'),
    (
      {"metric": "exact_match", "answer_key": "sufix"},
      'x.jsonl:1: no answer under "sufix".*Did you mean "suffix"',
    ),
  ],
)
def test_errors(evaluator, run, changes, message):
  with pytest.raises(ValueError, match=message):
    run(dataclasses.replace(evaluator, **changes))


def test_indivisible_batch_is_an_error(evaluator, model, params, eight_devices):
  with pytest.raises(
    ValueError, match="batch_size 5 is not divisible by the 4"
  ):
    evaluator.run(model, params, eight_devices)


def test_a_size_that_is_null_is_that_of_the_picture(evaluator, run, prompts):
  seen = []

  def keep(texts, examples, *, answer_key):
    seen.extend((e["height"], e["width"]) for e in examples)
    return {"texts": float(len(texts))}

  keep.reads_size = True
  ops = (lambda example, rng: {**example, "height": None, "width": 7},)
  through = dataclasses.replace(prompts, ops=ops)
  run(dataclasses.replace(evaluator, metric=keep, preprocess=through))
  sources = range(len(evaluator.source))
  assert seen == [
    pictures.size(evaluator.source[i]["image"], where="") for i in sources
  ]


def test_functions_for_a_sampler_and_a_metric(evaluator, run, plain):
  def most_likely(logits, rng):
    del rng
    return jax.numpy.argmax(logits, axis=-1).astype("int32")

  def length(prediction, example):
    return {"length": len(prediction), "where": "_where" in example}

  changed = dataclasses.replace(evaluator, sampler=most_likely, metric=length)
  scores, lines = run(changed, rng=jax.random.key(0))
  assert_same(lines, plain)
  assert scores["length"] == np.mean([len(x["prediction"]) for x in plain])
  assert scores["where"] == 1
