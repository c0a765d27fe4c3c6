import hashlib
import itertools
import json
import random
import re

import pytest

from paligemma.metrics import vqav2
from tests.metrics import adversarial_texts

# sha256 of the official table (lavis 1.0.2, common/vqa_tools/vqa_eval.py:
# contractions | manualMap) as JSON with sorted keys.
OFFICIAL_TABLE = (
  "e415eee91c8fcb30f93f5b9caf1e555071016807fc3a5ae3ca63b4258d7acdf0"
)
OFFICIAL_BUT_IDLE = {
  "let's": "let's",
  "she's": "she's",
  "Im": "I'm",
  "Ive": "I've",
  "Id've": "I'd've",
  "I'dve": "I'd've",
}


def test_the_table_is_the_official_one():
  assert not vqav2.REPLACEMENTS.keys() & OFFICIAL_BUT_IDLE.keys()
  table = vqav2.REPLACEMENTS | OFFICIAL_BUT_IDLE
  assert len(table) == 132
  text = json.dumps(table, sort_keys=True)
  assert hashlib.sha256(text.encode()).hexdigest() == OFFICIAL_TABLE


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("", ""),
    ("A Cat", "cat"),
    ("the", ""),
    ("An apple and THE pear", "apple and pear"),
    ("none", "0"),
    ("Ten", "10"),
    ("eleven", "eleven"),
    ("isnt", "isn't"),
    ("couldn'tve couldnt've couldntve", "couldn't've couldn't've couldntve"),
    ("ow's'at 'ows'at 'ow'sat", "'ow's'at 'ow's'at 'ow's'at"),
    ("yall'd've y'all'dve", "y'all'd've y'all'd've"),
    ("somebody'd somebodyd", "somebodyd somebodyd"),
    ("Im", "im"),
    ("let's", "let's"),
    # A mark becomes a space, or goes if it stands beside a space anywhere.
    ("t-shirt", "t shirt"),
    ("t-shirt - red", "tshirt red"),
    ("yes!no", "yes no"),
    ("yes!", "yes"),
    ("a,b", "b"),
    ("x,;y z,w", "x y z w"),  # beside a space in the text as it was
    # With a comma between digits every mark goes.
    ("1,000 red-blue", "1000 redblue"),
    ("1, 000 red-blue", "1 000 red blue"),
    # The point: stays before a digit, goes elsewhere, even in "2.".
    ("2.5", "2.5"),
    (".5", ".5"),
    ("2.", "2"),
    ("U.S.A.", "usa"),
    ("..5", ".5"),
    ("." * 40, ""),
    # Neither colon nor apostrophe nor per cent is a mark.
    ("10:30 dog's 5%", "10:30 dog's 5%"),
    ("two\nthree", "2 3"),
  ],
)
def test_normalize(text, expected):
  assert vqav2.normalize(text) == expected


def by_letter(text):
  """The same rules in another way: letter by letter, then the words."""
  commas = any(
    mark == "," and before.isdecimal() and after.isdecimal()
    for before, mark, after in zip(text, text[1:], text[2:], strict=False)
  )
  padded = list(itertools.pairwise(f"#{text}#"))
  beside = {a for a, b in padded if b == " "} | {
    b for a, b in padded if a == " "
  }
  kept = []
  for letter in text:
    if letter not in '/[]{}()=+\\_-><@`,?!;"':
      kept.append(letter)
    elif not commas and letter not in beside:
      kept.append(" ")
  points = [
    letter
    for letter, following in zip(kept, [*kept[1:], "#"], strict=False)
    if letter != "." or following.isdecimal()
  ]
  words = "".join(points).lower().split()
  words = [word for word in words if word not in {"the", "an", "a"}]
  return " ".join(vqav2.REPLACEMENTS.get(word, word) for word in words)


def test_normalize_over_adversarial_texts():
  texts = adversarial_texts.texts(seed=17, number=20_000)
  for text in texts:
    assert vqav2.normalize(text) == by_letter(text), repr(text)
  assert len({vqav2.normalize(text) for text in texts}) > 5000


@pytest.mark.parametrize(
  ("agreeing", "expected"),
  [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1)],
)
def test_agreement(agreeing, expected):
  answers = ["cat"] * agreeing + ["dog"] * (10 - agreeing)
  assert vqav2.vqav2("the cat", answers) == pytest.approx(expected)


def test_nothing_is_normalised_where_all_agree():
  assert vqav2.vqav2("STOP", ["stop"] * 10) == 0.0
  assert vqav2.vqav2("STOP", ["STOP\n"] * 10) == 1.0
  assert vqav2.vqav2("\tgo", ["go"] * 10) == 1.0
  assert vqav2.vqav2("STOP", ["stop"] * 9 + ["sign"]) == 1.0
  assert vqav2.vqav2("two", ["2", "two"] * 5) == 1.0


def left_out(prediction, answers):
  """The definition: one person after another is left out."""
  scores = []
  for i in range(len(answers)):
    others = answers[:i] + answers[i + 1 :]
    scores.append(min(1, sum(a == prediction for a in others) / 3))
  return sum(scores) / len(scores)


def test_leave_one_out_over_adversarial_texts():
  rng = random.Random(19)
  texts = adversarial_texts.texts(seed=23, number=10_000)
  near = adversarial_texts.near(texts, seed=29)
  seen = set()
  for prediction, other in zip(texts, near, strict=True):
    people = rng.choice([2, 3, 5, 10, 10, 10])
    answers = rng.choices([prediction, other, "x", f"{other} y"], k=people)
    tidy = [re.sub("[\n\t]", " ", a).strip() for a in (prediction, *answers)]
    if len(set(tidy[1:])) > 1:
      tidy = [by_letter(text) for text in tidy]
    expected = left_out(tidy[0], tidy[1:])
    assert vqav2.vqav2(prediction, answers) == pytest.approx(expected)
    seen.add(round(expected, 2))
  assert {0, 0.3, 0.6, 0.9, 1} <= seen


def test_metric_by_type():
  types = ["yes/no", "number", "other", "other", "unanswerable"]
  examples = [
    {"answers": ["1"] * 4 + ["2"] * 6, "answer_type": kind} for kind in types
  ]
  predictions = ["one", "three", "2", "4", "2"]
  metric = vqav2.VQAv2()
  assert metric(predictions, examples, answer_key="answers") == {
    "acc": pytest.approx(3 / 5),
    "acc/yesno": 1.0,
    "acc/number": 0.0,
    "acc/other": 0.5,
    "acc/unanswerable": 1.0,
    "num/yesno": 1.0,
    "num/number": 1.0,
    "num/other": 2.0,
    "num/unanswerable": 1.0,
    "num": 5.0,
  }
  found = vqav2.VQAv2(by_type=False)(
    predictions, examples, answer_key="answers"
  )
  assert found == {"acc": pytest.approx(3 / 5), "num": 5.0}


def test_errors():
  metric = vqav2.VQAv2()
  example = {"suffix": ["a", "b"], "answer_type": "yesno"}
  with pytest.raises(
    ValueError, match=r'"answer_type" is .yesno.*mean "yes/no"'
  ):
    metric(["a"], [example])
  with pytest.raises(ValueError, match="answers of several people"):
    metric(["a"], [example | {"suffix": ["a"]}])
  with pytest.raises(ValueError, match="expected a list of texts"):
    metric(["a"], [example | {"suffix": "a"}])
