"""VQAv2 accuracy: agreement with ten people on normalised answers."""

import dataclasses
import re
from collections.abc import Sequence

from paligemma.metrics import answer_fields, number_words
from paligemma.metrics import metric as metric_lib

ANSWER_TYPES = ("yes/no", "number", "other", "unanswerable")

# The official table maps a contraction with one apostrophe left out to the
# whole: "couldnt" -> "couldn't", "couldn'tve" and "couldnt've" ->
# "couldn't've". These are its right-hand sides; what is short of two
# apostrophes ("couldntve") is not in it.
_CONTRACTIONS = """
  ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't
  hadn't've hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd
  it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't
  not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't
  shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
  someone'll someone's something'd something'd've something'll that's there'd
  there'd've there're there's they'd they'd've they'll they're they've 'twas
  wasn't we'd've we've weren't what'll what're what's what've when's where'd
  where's where've who'd who'd've who'll who's who've why'll why're why's won't
  would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll
  you're you've
"""

# Word -> word. The official table has six more entries that change nothing:
# let's and she's stand for themselves, and words are lowered before Im, Ive,
# I'dve and Id've could be met. "somebody'd" is the wrong way round there too.
REPLACEMENTS = (
  {
    word[:i] + word[i + 1 :]: word
    for word in _CONTRACTIONS.split()
    for i, letter in enumerate(word)
    if letter == "'"
  }
  | {"somebody'd": "somebodyd"}
  | number_words.numerals(10)
)
ARTICLES = ("a", "an", "the")
PUNCTUATION = r""";/[]"{}()=+\_-><@`,?!"""
_DIGIT_COMMA = re.compile(r"\d,\d")
# Meant to spare the point of "2.5", but "(?!<=" is no look-behind: it removes
# every point that no digit follows, "2." included. Kept, as scores rest on it.
_PERIOD = re.compile(r"(?!<=\d)\.(?!\d)")


def strip_space(text: str) -> str:
  """Newlines and tabs become spaces; white space at the ends goes."""
  return text.replace("\n", " ").replace("\t", " ").strip()


def normalize(text: str) -> str:
  """The text without punctuation and articles, numbers up to ten as digits.

  A mark of PUNCTUATION is removed where it stands beside a space anywhere in
  the text, or if the text has a comma between digits (then all marks are);
  elsewhere it becomes a space. Then come points, case, articles and
  REPLACEMENTS:

    "The T-shirt, isnt it?"   "t shirt isn't it"
    "1,000 (one-two)"         "1000 onetwo"
    "No. 2.5"                 "no 2.5"

  Source: official VQA evaluation (GT-Vision-Lab/VQA, vqaEval.py), as in
  big_vision, evaluators/proj/paligemma/transfers/vqav2.py. The official code
  passes re.UNICODE where the number of substitutions belongs, and so removes
  no more than 32 points of a text; we remove all, as big_vision does.
  """
  remove_all = _DIGIT_COMMA.search(text) is not None
  out = text
  for mark in PUNCTUATION:
    beside_space = f"{mark} " in text or f" {mark}" in text
    out = out.replace(mark, "" if remove_all or beside_space else " ")
  words = _PERIOD.sub("", out).lower().split()
  return " ".join(
    REPLACEMENTS.get(word, word) for word in words if word not in ARTICLES
  )


def vqav2(prediction: str, answers: Sequence[str]) -> float:
  """Agreement of the prediction with the people who answered.

  Each person in turn is left out; the score against the others is
  min(1, matches / 3); the mean over all is returned. Of ten people 0, 1, 2, 3
  and more who agree give 0, 0.3, 0.6, 0.9 and 1. If all gave the same answer,
  the texts are compared without `normalize`.

  Args:
    prediction: decoded text.
    answers: what each person answered; ten of them in VQAv2, TextVQA, OK-VQA
      and VizWiz.

  Source: as that of `normalize`. Older versions of the official script, such as
  that in salesforce-lavis, normalise the prediction even where all agree.
  big_vision takes ten answers for granted; we count them.
  """
  prediction = strip_space(prediction)
  answers = [strip_space(answer) for answer in answers]
  if len(set(answers)) > 1:
    prediction = normalize(prediction)
    answers = [normalize(answer) for answer in answers]
  matches, people = answers.count(prediction), len(answers)
  # matches of the people leave out one who agrees, the others one who does not.
  agreeing = matches * min(1.0, (matches - 1) / 3)
  others = (people - matches) * min(1.0, matches / 3)
  return (agreeing + others) / people


@dataclasses.dataclass(frozen=True)
class VQAv2(metric_lib.Metric):
  """VQAv2 accuracy, over all and by type of answer.

  TextVQA is scored by it as well, as in big_vision, though the scripts of its
  authors (mmf, EvalAIAnswerProcessor) normalise where all agree too, and first
  drop commas and question marks and set "'s" apart.

  Keys: acc; acc/yesno, acc/number, acc/other (VizWiz: acc/unanswerable) and
  their num/yesno, ...; num.

  Attributes:
    by_type: read each example's "answer_type", one of ANSWER_TYPES. False for
      data sets that have none, such as TextVQA and OK-VQA: no key but acc, num.
  """

  by_type: bool = True

  def score(self, prediction, example, answer_key):
    answers = answer_fields.texts(example, answer_key, "list of answers")
    if len(answers) < 2:
      raise answer_fields.wrong(
        example, answer_key, "the answers of several people"
      )
    row = {"acc": vqav2(prediction, answers)}
    if self.by_type:
      kind = answer_fields.choice(
        example, "answer_type", "type of answer", ANSWER_TYPES
      )
      row[f"acc/{kind.replace('/', '')}"] = row["acc"]
    return row
