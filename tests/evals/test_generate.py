import dataclasses
import json

import jax
import numpy as np
import pytest

from paligemma import decode, evals, samplers
from paligemma.data import text_ops
from paligemma.metrics import exact_match


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


def test_running_again_compiles_nothing(evaluator, run, plain, params):
  compiled = decode._generate._cache_size()
  run(evaluator)
  assert decode._generate._cache_size() == compiled


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
