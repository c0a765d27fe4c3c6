import pickle

import numpy as np
import pytest

from paligemma.data import text_ops


@pytest.fixture
def rng():
  return np.random.default_rng(0)


def test_format(rng):
  example = {"question": "how many?", "answer": 3, "suffix": "kept"}
  op = text_ops.Format("answer en {question}", "{answer}")
  assert op(example, rng) == {
    **example,
    "prefix": "answer en how many?",
    "suffix": "3",
  }
  op = text_ops.Format("caption en")
  assert op(example, rng) == {**example, "prefix": "caption en"}
  assert "prefix" not in example


@pytest.mark.parametrize(
  ("template", "value", "message"),
  [
    ("a {x", "b", "cannot fill the template .* expected '}' before end"),
    ("a {}", "b", "cannot fill the template .* positional fields"),
    ("a {x.y}", "b", "cannot fill the template .* has no attribute 'y'"),
    ("a {x[3]}", ["b"], "cannot fill the template .* index out of range"),
    ("a {x}", None, r"{x} of the template is None, expected a text or a num"),
    ("a {x}", ["b"], r"{x} of the template is \['b'\], expected a text or a"),
    ("a {x}", True, r"{x} of the template is True, expected a text or a num"),
    ("a {x:.1f}", float("nan"), r"{x} of the template is nan, expected a text"),
    ("a {x[1]}", ["b", b"c"], r"{x\[1\]} of the template is b'c', expected a"),
  ],
)
def test_format_writes_texts_and_numbers_alone(template, value, message):
  example = {"x": value, "_where": "a.jsonl:7"}
  with pytest.raises(ValueError, match=f"^a.jsonl:7: {message}"):
    text_ops.Format("b", template)(example, None)


def test_format_takes_numbers_and_parts():
  example = {"x": [3, np.float32(0.5)], "y": {"z": "w"}}
  op = text_ops.Format("{x[0]} {x[1]:.2f}", "{y[z]}{{}}")
  assert op(example, None)["prefix"] == "3 0.50"
  assert op(example, None)["suffix"] == "w{}"


def test_copy(rng):
  captions = {"text": ["a", "b"], "id": [7, 8]}
  example = {"captions": captions, "a/b": 1, "a": {"b": 2}}
  made = text_ops.Copy("captions/text", "captions")(example, rng)
  assert made == {**example, "captions": ["a", "b"]}
  assert example["captions"] is captions
  # A field of that very name comes first.
  assert text_ops.Copy("a/b", "c")(example, rng)["c"] == 1


def test_numbers_as_text(rng):
  for value in (3, np.int32(3), "3"):
    made = text_ops.Text("answer", "suffix")({"answer": value}, rng)
    assert made == {"answer": value, "suffix": "3"}
  assert text_ops.Text("n")({"n": 12}, rng) == {"n": "12"}


def test_lower(rng):
  made = text_ops.Lower("a")({"a": ["A Dog", "ÄÖ"], "b": "B"}, rng)
  assert made == {"a": ["a dog", "äö"], "b": "B"}
  assert text_ops.Lower("b")(made, rng)["b"] == "b"
  assert text_ops.Lower("a")({"a": []}, rng) == {"a": []}


def test_pick(rng):
  example = {"choices": ["a", "b", "c"], "correct": np.int64(2)}
  op = text_ops.Pick("choices", "correct", "answer")
  assert op(example, rng)["answer"] == "c"


def test_fill_masks(rng):
  dense = np.array([[False, True], [False, True], [True, True]])
  lengths = {"size": [3, 2], "counts": [2, 4]}
  things = [{"mask": lengths, "label": "a"}, {"mask": dense}, {"label": "c"}]
  made = text_ops.FillMasks()({"objects": things}, rng)["objects"]
  np.testing.assert_array_equal(made[0]["mask"], dense)
  assert made[0]["mask"].dtype == bool
  assert made[1]["mask"] is dense
  assert made[2] == {"label": "c"}
  assert things[0]["mask"] is lengths


MULTIPLE_CHOICE = "answer en  what is it? choose from: a dog \t a cat \t b"


def test_multiple_choice(rng):
  example = {"question": "what is it?", "options": ["a dog", "a cat", "b"]}
  made = text_ops.MultipleChoice("options")(example, rng)
  assert made == {**example, "prefix": MULTIPLE_CHOICE}


SCIENCE = {
  "question": "Which is soft?",
  "choices": ["stone", "wool", "iron"],
  "answer": 1,
  "hint": "Touch them.",
  "lecture": "Feel.",
  "solution": "Wool is.",
}


@pytest.mark.parametrize(
  ("prompt", "prefix"),
  [
    ("simple", "Which is soft?\nOptions: {}"),
    ("QM", "Question: Which is soft?\nOptions: {}\nAnswer:"),
    (
      "CQM",
      "Context: Touch them.\nQuestion: Which is soft?\nOptions: {}\nAnswer:",
    ),
    (
      "QCM",
      "Question: Which is soft?\nContext: Touch them.\nOptions: {}\nAnswer:",
    ),
  ],
)
def test_prompts_of_science_qa(prompt, prefix, rng):
  made = text_ops.ScienceQA(prompt=prompt)(SCIENCE, rng)
  assert made["prefix"] == prefix.format("(A) stone, (B) wool, (C) iron")
  assert made["suffix"] == "The answer is B."
  assert made.keys() == SCIENCE.keys() | {"prefix", "suffix"}


@pytest.mark.parametrize(
  ("answer", "suffix"),
  [
    ("simple", "B"),
    ("A", "The answer is B."),
    ("AL", "The answer is B. BECAUSE: Feel."),
    ("AE", "The answer is B. BECAUSE: Wool is."),
    ("ALE", "The answer is B. BECAUSE: Feel. Wool is."),
  ],
)
def test_answers_of_science_qa(answer, suffix, rng):
  assert text_ops.ScienceQA(answer=answer)(SCIENCE, rng)["suffix"] == suffix


@pytest.mark.parametrize("hint", ["", None])
def test_science_qa_without_hint(hint, rng):
  example = {**SCIENCE, "hint": hint}
  if hint is None:
    del example["hint"]
  made = text_ops.ScienceQA()(example, rng)
  assert "\nContext: N/A\n" in made["prefix"]


def test_shuffled_choices_of_science_qa(rng):
  op = text_ops.ScienceQA(shuffle=True)
  seen = set()
  for _ in range(100):
    made = op(SCIENCE, rng)
    letter = made["suffix"][-2]
    assert f"({letter}) wool" in made["prefix"]
    seen.add(made["prefix"])
  assert len(seen) == 6


def test_choice(rng):
  example = {"suffix": ["a dog", "a cat", "a bird"]}
  draws = [text_ops.Choice("suffix")(example, rng)["suffix"] for _ in range(60)]
  assert set(draws) == {"a dog", "a cat", "a bird"}
  made = text_ops.Choice("suffix", "one")(example, rng)
  assert made["suffix"] == example["suffix"]
  assert made["one"] in example["suffix"]
  array = {"suffix": np.array(["a dog"], object)}
  assert text_ops.Choice("suffix")(array, rng) == {"suffix": "a dog"}


def test_choice_depends_on_the_rng_alone():
  example = {"suffix": list("abcdefghijk"), "_index": 5, "_epoch": 2}
  op = text_ops.Choice("suffix")
  draws = [
    [op(example, rng)["suffix"] for _ in range(20)]
    for rng in map(np.random.default_rng, (5, 5, 6))
  ]
  assert draws[0] == draws[1] != draws[2]


def test_choice_without_replacement(rng):
  op = text_ops.Choice("captions", "suffix", replace=False)

  def draws(index, epochs, op=op):
    example = {"captions": list("abcde"), "_index": index}
    made = [op({**example, "_epoch": e}, rng)["suffix"] for e in epochs]
    return "".join(made)

  for index in range(7):
    for turn in range(3):
      epochs = range(5 * turn, 5 * turn + 5)
      assert sorted(draws(index, epochs)) == list("abcde")
  # Each time through them in another order, for each example and field.
  first = [draws(index, range(5)) for index in range(40)]
  assert len(set(first)) > 20
  assert len({draws(3, range(5 * t, 5 * t + 5)) for t in range(20)}) > 10
  other = text_ops.Choice("others", "suffix", replace=False)
  others = [
    "".join(
      other({"others": list("abcde"), "_index": i, "_epoch": e}, rng)["suffix"]
      for e in range(5)
    )
    for i in range(40)
  ]
  assert first != others
  # The same whoever draws it, and in any order.
  assert draws(4, [3]) == draws(4, range(5))[3]
  assert draws(4, range(5), pickle.loads(pickle.dumps(op))) == first[4]
  assert op({"captions": list("abcde")}, rng)["suffix"] in "abcde"


@pytest.mark.parametrize(
  ("op", "example", "message"),
  [
    (
      text_ops.Copy("captions/txt", "c"),
      {"captions": {"text": []}},
      'missing key "txt", found text. Did you mean "text"',
    ),
    (
      text_ops.Copy("captions/text", "c"),
      {"captions": ["a"]},
      'expected fields, "text" among them under "captions", found',
    ),
    (text_ops.Text("n"), {"n": 1.5}, 'whole number or a text under "n", found'),
    (text_ops.Text("n"), {"n": True}, 'whole number or a text under "n"'),
    (text_ops.Lower("a"), {"a": 3}, "expected a text or a list of texts under"),
    (text_ops.Lower("a"), {"a": ["A", 3]}, "a text or a list of texts under"),
    (text_ops.Choice("a"), {"a": []}, 'a list to choose from under "a", fou'),
    (text_ops.Choice("a"), {"a": "b"}, 'a list to choose from under "a", fou'),
    (
      text_ops.Pick("a", "i", "b"),
      {"a": ["x", "y"], "i": 2},
      'expected an index from 0 to 1 under "i", found 2',
    ),
    (
      text_ops.Pick("a", "i", "b"),
      {"a": ["x"], "i": -1},
      'under "i", found -1',
    ),
    (text_ops.Pick("a", "i", "b"), {"a": ["x"], "i": False}, "found False"),
    (
      text_ops.FillMasks(),
      {"objects": [{"mask": {"size": [3, 2]}}]},
      'a mask of "objects" cannot be read: run-length mask is no dict',
    ),
    (text_ops.FillMasks(), {"objects": [3]}, 'a mask of "objects" cannot be'),
    (
      text_ops.MultipleChoice("c"),
      {"c": ["a", 1], "question": "q"},
      'expected a list of texts, one at least under "c"',
    ),
    (
      text_ops.ScienceQA(),
      {**SCIENCE, "choices": ["a"] * 27},
      'no more choices than letters under "choices"',
    ),
    (
      text_ops.ScienceQA(),
      {**SCIENCE, "answer": 3},
      'an index from 0 to 2 under "answer", found 3',
    ),
  ],
)
def test_a_field_that_does_not_fit_is_named(op, example, message, rng):
  example = {**example, "_where": "a.jsonl:3"}
  with pytest.raises(ValueError) as caught:
    op(example, rng)
  assert message in str(caught.value)
  assert str(caught.value).startswith("a.jsonl:3: ")
  assert "\n" not in str(caught.value)


def test_unknown_formats_of_science_qa():
  with pytest.raises(ValueError, match=r'prompt format of ScienceQA "QMC"'):
    text_ops.ScienceQA(prompt="QMC")
  with pytest.raises(ValueError, match=r'answer format of ScienceQA "a".*"A"'):
    text_ops.ScienceQA(answer="a")
