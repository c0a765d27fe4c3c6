"""Every text in one row, none beside its neighbours, the same in every run."""

import json
import re

import numpy as np
import pytest

from paligemma.data import batches, packing, preprocess, sources, text_ops

TEXT_LEN = 22
SIZE = TEXT_LEN + 1
WORDS = ["what", "digit", "is", "this", "red", "blue", "circle"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """31 texts of 1 to 9 words."""
  rng = np.random.default_rng(0)
  path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
  texts = [" ".join(rng.choice(WORDS, rng.integers(1, 10))) for _ in range(31)]
  path.write_text("".join(f"{json.dumps({'text': x})}\n" for x in texts))
  return sources.TextJsonl(path)


@pytest.fixture
def of_text(tokenizer):
  return preprocess.Preprocess(
    tokenizer, None, TEXT_LEN, train=True, too_long="truncate"
  )


def test_a_text_goes_into_the_fullest_row_with_room():
  lengths = [7, 2, 5, 3, 3, 8, 1]
  order = np.random.default_rng(0).permutation(7)
  assert [lengths[i] for i in order] == [5, 3, 3, 1, 8, 7, 2]
  # 5 + 3 + 1, as 1 fits into the first row as well; 3 + 7; 8 + 2.
  assert packing.distribute(lengths, 10) == [[2, 4, 6], [3, 0], [5, 1]]
  assert packing.distribute([], 10) == []


@pytest.mark.parametrize("seed", range(5))
def test_every_text_is_in_one_row_and_rows_are_nearly_full(seed):
  lengths = np.random.default_rng(seed).integers(1, 40, 997).tolist()
  rows = packing.distribute(lengths, 101, seed=seed)
  assert sorted(i for row in rows for i in row) == list(range(997))
  filled = [sum(lengths[i] for i in row) for row in rows]
  assert max(filled) <= 101
  assert np.mean(filled) > 0.97 * 101
  assert rows != packing.distribute(lengths, 101, seed=seed + 1)


def arrays(text, mask_ar, mask_loss, padding, **more):
  used = len(text)
  return {
    "text": np.array(text + [0] * padding, np.int32),
    "mask_ar": np.array(mask_ar + [1] * padding, np.int32),
    "mask_input": np.arange(used + padding) < used,
    "mask_loss": np.array(mask_loss + [0] * padding, np.int32),
    **more,
  }


def test_join():
  row = packing.join(
    [
      arrays(
        [2, 5, 6, 1], [1, 1, 1, 1], [0, 1, 1, 1], 7, truncated=np.int32(0)
      ),
      arrays(
        [2, 8, 7, 1], [0, 0, 1, 1], [1, 0, 1, 1], 3, truncated=np.int32(1)
      ),
    ],
    11,
  )
  expected = {
    "text": [2, 5, 6, 1, 2, 8, 7, 1, 0, 0, 0],
    "mask_ar": [1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1],
    "mask_input": [1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "mask_loss": [0, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0],
    "segment_ids": [1, 1, 1, 1, 2, 2, 2, 2, 0, 0, 0],
    "truncated": 1,
  }
  assert row.keys() == expected.keys()
  for key, value in expected.items():
    np.testing.assert_array_equal(row[key], value, err_msg=key)
    wanted = np.bool_ if key == "mask_input" else np.int32
    assert row[key].dtype == wanted, key


def test_a_row_has_no_room():
  text = arrays([2, 5, 1], [1] * 3, [0, 1, 1], 1)
  with pytest.raises(
    ValueError, match=r"^2 texts have 6 tokens, .* room for 5"
  ):
    packing.join([text, text], 5)


def test_rows_hold_the_texts(source, of_text):
  rows = packing.Rows(source, of_text, seed=3, on_bad="stop")
  through, rng = packing.Preprocess(of_text), np.random.default_rng(0)
  found, used = [], 0
  for i in range(len(rows)):
    row = through(rows[i], rng)
    for k in range(1, row["segment_ids"].max() + 1):
      found.append(row["text"][row["segment_ids"] == k].tolist())
    used += row["mask_input"].sum()
  whole = [of_text(source[i], rng) for i in range(len(source))]
  expected = [x["text"][x["mask_input"]].tolist() for x in whole]
  assert sorted(found) == sorted(expected)
  assert len(rows) < len(source)
  share = used / (len(rows) * SIZE)
  assert rows.describe() == (
    f"31 texts in {len(rows)} rows of 23 tokens, {share:.1%} full"
  )
  padding = through.padding()
  assert {k: v.shape for k, v in padding.items()} == {
    k: v.shape for k, v in row.items()
  }
  assert not any(value.any() for value in padding.values())


def read(source, of_text, processes=1, **options):
  """Iterators over the batches of all processes."""
  rows = packing.Rows(source, of_text, seed=0, on_bad="stop")
  return [
    batches.train(
      [(rows, 1)],
      packing.Preprocess(of_text),
      batch_size=4,
      seed=5,
      process_index=i,
      process_count=processes,
      **options,
    )
    for i in range(processes)
  ]


def assert_same(a, b):
  assert a.keys() == b.keys()
  for key, value in a.items():
    np.testing.assert_array_equal(value, b[key], err_msg=key)


def test_batches_resume_bit_for_bit_in_any_number_of_processes(source, of_text):
  (whole,) = read(source, of_text)
  expected = []
  for step in range(11):
    if step == 4:
      state = json.loads(json.dumps(whole.get_state()))
    expected.append(next(whole))
  whole.close()
  assert expected[0]["segment_ids"].max() > 1
  parts = read(source, of_text, processes=2, num_workers=1)
  for part in parts:
    part.set_state(state)
  for batch in expected[4:]:
    halves = [next(part) for part in parts]
    joined = {k: np.concatenate([h[k] for h in halves]) for k in halves[0]}
    assert_same(joined, batch)
  for part in parts:
    part.close()


def test_bad_texts(tokenizer, tmp_path, caplog):
  path = tmp_path / "bad.jsonl"
  path.write_text('{"text": "red"}\n{"text": " "}\n{"text": "blue"}\n')
  of_text = preprocess.Preprocess(tokenizer, None, TEXT_LEN, train=True)
  source = sources.TextJsonl(path)
  message = f"{path}:2: the text is empty"
  with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
    packing.Rows(source, of_text, seed=0, on_bad="stop")
  rows = packing.Rows(source, of_text, seed=0, on_bad="skip")
  assert [len(rows[i]["texts"]) for i in range(len(rows))] == [2]
  assert message in caplog.text
  path.write_text('{"text": ""}\n')
  source = sources.TextJsonl(path)
  with pytest.raises(ValueError, match=r"bad\.jsonl: none of 1 texts can be"):
    packing.Rows(source, of_text, seed=0, on_bad="skip")


def test_ops_that_draw_are_refused(tokenizer, tmp_path):
  path = tmp_path / "loose.jsonl"
  path.write_text('{"text": ["red", "blue circle"]}\n')
  of_text = preprocess.Preprocess(
    tokenizer, None, TEXT_LEN, train=True, ops=(text_ops.Choice("text"),)
  )
  with pytest.raises(
    ValueError, match=r"loose\.jsonl:1: an op draws at random"
  ):
    packing.Rows(sources.TextJsonl(path), of_text, seed=0, on_bad="skip")
