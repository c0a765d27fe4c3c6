"""The file of predictions: cut anywhere it is resumed, and damage is named."""

import json

import numpy as np
import pytest

from paligemma.evals import predictions

SETTINGS = {"sampler": "greedy", "data": {"examples": 7}}
BATCH = 3


@pytest.fixture(scope="module")
def records():
  return [
    predictions.record(
      i,
      {"prefix": f"what {i}", "suffix": f"{i}", "_where": f"x.jsonl:{i + 1}"},
      "suffix",
      prediction=f"{i % 2}\u2028é\r\n",
      score=-i / 3,
      confidences=[0.5] * (i % 3),
    )
    for i in range(7)
  ]


def write(path, records, *, settings=SETTINGS):
  """As an evaluator does; returns how many records there were before."""
  kept = predictions.resume(
    path, settings, count=len(records), batch_size=BATCH
  )
  assert kept == records[: len(kept)]
  with predictions.appending(path) as append:
    for start in range(-(-len(kept) // BATCH) * BATCH, len(records), BATCH):
      append(records[start : start + BATCH])
  return len(kept)


@pytest.fixture
def path(tmp_path, records):
  path = tmp_path / "deep/er/y.jsonl"
  assert write(path, records) == 0
  return path


def test_lines_are_the_records(path, records):
  assert path.read_text().count("\n") == 7
  assert predictions.read(path, 7) == records
  assert records[5] == {
    "prefix": "what 5",
    "suffix": "5",
    "where": "x.jsonl:6",
    "index": 5,
    "prediction": "1\u2028é\r\n",
    "score": -1.666667,
    "confidences": [0.5, 0.5],
    "correct": False,
  }


def test_cut_at_any_byte_it_is_resumed(path, records):
  whole = path.read_bytes()
  ends = np.cumsum([len(line) + 1 for line in whole.split(b"\n")[:-1]])
  for cut in range(len(whole) + 1):
    path.write_bytes(whole[:cut])
    lines = np.count_nonzero(ends <= cut)
    assert write(path, records) == (7 if lines == 7 else lines // 3 * 3)
    assert path.read_bytes() == whole, cut
  assert sorted(p.name for p in path.parent.iterdir()) == [
    "y.jsonl",
    "y.jsonl.settings",
  ]


def test_fields_of_ours_never_come_from_the_example():
  example = {"index": 9, "score": 3, "correct": True, "confidences": [2]}
  line = predictions.record(0, example, "suffix", prediction="a", score=-1.0)
  assert line == {"index": 0, "prediction": "a", "score": -1.0}


def test_what_json_cannot_hold_is_left_out():
  example = {
    "mask": np.zeros((2, 3)),
    "id": np.int64(7),
    "image": b"",
    "_image_path": "a/b.png",
    "answers": ["x", "y"],
  }
  line = predictions.record(0, example, "answers", prediction="y", score=0.0)
  assert json.loads(json.dumps(line)) == {
    "id": 7,
    "image": "a/b.png",
    "answers": ["x", "y"],
    "index": 0,
    "prediction": "y",
    "score": 0.0,
    "correct": True,
  }


def test_half_a_surrogate_pair_is_kept(tmp_path):
  lone = {"prefix": json.loads('"\\ud83d"'), "index": 0, "prediction": "a"}
  path = tmp_path / "y.jsonl"
  with predictions.appending(path) as append:
    append([lone])
  assert predictions.read(path, 1) == [lone]


def test_other_settings_are_refused(path, records):
  before = path.read_bytes()
  other = {"sampler": "nucleus(p=0.9)", "data": {"examples": 7}, "seed": 1}
  with pytest.raises(
    ValueError,
    match=r"y.jsonl: holds predictions made with other settings \(sampler was "
    r'"greedy", now "nucleus\(p=0.9\)"; seed was nothing, now 1\); restore '
    "them, delete the file, or write elsewhere",
  ):
    write(path, records, settings=other)
  assert path.read_bytes() == before
  path.unlink()
  assert write(path, records, settings=other) == 0


@pytest.mark.parametrize("content", [None, "[1, 2", ""])
def test_a_file_without_settings_is_refused(path, records, content):
  beside = path.with_name("y.jsonl.settings")
  beside.unlink() if content is None else beside.write_text(content)
  with pytest.raises(
    ValueError, match=r"without a readable y.jsonl.settings cannot be resumed"
  ):
    write(path, records)


def test_a_file_without_a_line_holds_nobody_up(path, records):
  path.write_bytes(b"")
  assert write(path, records, settings={"other": 1}) == 0
  assert write(path, records, settings={"other": 1}) == 7


def test_values_that_json_changes_are_the_same_settings(path, records):
  as_python = {"data": {"examples": np.int64(7)}, "sampler": "greedy"}
  assert write(path, records, settings=as_python) == 7


def damaged(path, number, text):
  """Replaces the line of that number, from 1 on; None removes it."""
  lines = path.read_text().split("\n")
  lines[number - 1 : number] = [] if text is None else [text]
  path.write_text("\n".join(lines))


LINE = '{"index": 3, "prediction": "a"}'
DAMAGE = [
  (4, None, r"4: index 4, expected 3: a line is missing"),
  (4, "", r"4: not JSON: Expecting value.*found b''"),
  (4, '{"index": 3, "predic', r"4: not JSON: .*found b'{\"index\": 3"),
  (4, "[3]", r'4: found \[3\], expected an object with "index" and "predict'),
  (4, '{"indx": 3, "prediction": ""}', r"4: found keys indx, prediction, expe"),
  (
    4,
    '{"index": 3}',
    r'4: found keys index, expected an object with "index" a',
  ),
  (4, LINE.replace("3", "2"), r"4: index 2 for the second time, expected 3"),
  (4, LINE.replace("3", "5"), r"4: index 5, expected 3: a line is missing"),
  (4, LINE.replace("3", "true"), r"4: index True, expected a number from 0 on"),
  (4, LINE.replace("3", "-1"), r"4: index -1, expected a number from 0 on"),
  (4, LINE.replace('"a"', "7"), r"4: prediction 7, expected a text"),
  (
    4,
    LINE.replace("}", ', "confidences": [NaN]}'),
    r"4: confidences \[nan\], expected a list of numbers",
  ),
  (7, None, r"7: the file ends here, expected 7 lines: one per example; what"),
  (8, LINE.replace("3", "7") + "\n", r"8: one line more than the 7 examples"),
]


@pytest.mark.parametrize(("number", "text", "message"), DAMAGE)
def test_damage_is_named(path, number, text, message):
  damaged(path, number, text)
  with pytest.raises(ValueError, match=rf"y\.jsonl:{message}"):
    predictions.read(path, 7)


@pytest.mark.parametrize(("number", "text", "message"), DAMAGE[:-2])
def test_what_no_kill_can_have_done_is_not_resumed(
  path, records, number, text, message
):
  damaged(path, number, text)
  before = path.read_bytes()
  with pytest.raises(ValueError, match=rf"y\.jsonl:{message}"):
    write(path, records)
  assert path.read_bytes() == before


def test_more_lines_than_examples_are_not_resumed(path, records):
  with pytest.raises(ValueError, match=r"y\.jsonl:7: one line more than the 6"):
    write(path, records[:6])


def test_bytes_that_are_no_text(path):
  path.write_bytes(path.read_bytes().replace(b"what 2", b"what \xff"))
  with pytest.raises(ValueError, match=r"y\.jsonl:3: not JSON: 'utf-8' codec"):
    predictions.read(path, 7)


def test_no_such_file(tmp_path):
  with pytest.raises(ValueError, match=r"n.jsonl: cannot read predictions: No"):
    predictions.read(tmp_path / "n.jsonl", 7)


def test_a_last_line_without_an_end_is_read(path, records):
  path.write_bytes(path.read_bytes().rstrip(b"\n"))
  assert predictions.read(path, 7) == records


def test_other_data_are_noticed(path, records):
  examples = [
    {"prefix": f"what {i}", "suffix": f"{i}", "_where": f"moved.jsonl:{i}"}
    for i in range(7)
  ]
  predictions.check_examples(path, records, examples)
  examples[4]["prefix"] = "what for"
  with pytest.raises(
    ValueError,
    match=r'y.jsonl:5: "prefix" is "what 4", but "what for" in moved.jsonl:4: '
    "these are predictions for other data",
  ):
    predictions.check_examples(path, records, examples)


@pytest.mark.parametrize("content", ['"x"', "[1]", "3", "[" * 100_000, "\x00"])
def test_settings_that_are_no_object_are_refused(path, records, content):
  path.with_name("y.jsonl.settings").write_text(content)
  message = r"y.jsonl: exists, and without a readable y.jsonl.settings cannot"
  with pytest.raises(ValueError, match=message):
    predictions.resume(path, SETTINGS, count=9, batch_size=3)


@pytest.mark.parametrize("line", ["[" * 100_000, "\x00", '{"index": 0'])
def test_a_line_of_any_damage_is_named(tmp_path, line):
  path = tmp_path / "y.jsonl"
  path.write_text(f"{line}\n")
  with pytest.raises(ValueError, match=r"y.jsonl:1: not JSON") as caught:
    predictions.read(path, 1)
  assert len(str(caught.value)) < 250


def test_a_line_that_says_why_there_is_no_prediction_is_one(tmp_path):
  path = tmp_path / "y.jsonl"
  bad = predictions.bad_record(0, "x.jsonl:1: no image")
  # An "error" beside a prediction is a field of the data.
  good = {"index": 1, "prediction": "1", "error": "none"}
  path.write_text(f"{json.dumps(bad)}\n{json.dumps(good)}\n")
  found = predictions.read(path, 2)
  assert found == [bad, good]
  assert [predictions.is_bad(line) for line in found] == [True, False]
  predictions.check_examples(path, found, [None, {"error": "none"}])
  with pytest.raises(ValueError, match=r"y.jsonl:2: a prediction for an exam"):
    predictions.check_examples(path, found, [None, None])


def test_bare_predictions_of_another_program_will_do(tmp_path):
  path = tmp_path / "y.jsonl"
  path.write_text('{"prediction": "a", "index": 0}\n')
  (line,) = predictions.read(path, 1)
  predictions.check_examples(path, [line], [{"prefix": "x", "suffix": "y"}])


def bundles(path):
  settings = json.loads(path.with_name("y.jsonl.settings").read_text())
  return settings.pop("bundles"), settings


def test_another_bundle_continues_a_file_and_is_named(tmp_path, records):
  path = tmp_path / "y.jsonl"
  first, second = {"a": {"seed": 0}}, {"b": {"seed": 1}}
  for made in (first, second, first):
    write(path, records, settings={**SETTINGS, "bundles": made})
    path.write_bytes(path.read_bytes()[:-20])  # as if it were killed
  assert bundles(path) == ({**first, **second}, SETTINGS)
  other = {**SETTINGS, "sampler": "beam", "bundles": {"c": {}}}
  with pytest.raises(ValueError, match=r"other settings \(sampler was "):
    write(path, records, settings=other)
  assert bundles(path) == ({**first, **second}, SETTINGS)


@pytest.mark.parametrize("damage", [3, [1], "x", None])
def test_damaged_bundles_are_replaced(path, records, damage):
  beside = path.with_name("y.jsonl.settings")
  beside.write_text(json.dumps({**SETTINGS, "bundles": damage}))
  write(path, records, settings={**SETTINGS, "bundles": {"a": {}}})
  assert bundles(path) == ({"a": {}}, SETTINGS)
