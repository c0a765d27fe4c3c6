"""VQAv2 accuracy: agreement with ten people on normalised answers."""

import dataclasses
import re
from collections.abc import Sequence

from paligemma.metrics import answer_fields
from paligemma.metrics.metric import Example, Metric, Row

ANSWER_TYPES = ("yes/no", "number", "other", "unanswerable")
_NUMBERS = (
  "zero one two three four five six seven eight nine ten eleven twelve thirteen"
  " fourteen fifteen sixteen seventeen eighteen nineteen twenty"
)


def numerals(largest: int) -> dict[str, str]:
  """{"none": "0", "zero": "0", "one": "1", ...} up to `largest`, at most 20."""
  words = _NUMBERS.split()[: largest + 1]
  return {"none": "0"} | {word: str(n) for n, word in enumerate(words)}


# The official table maps a contraction that lacks one apostrophe to the full
# form: "couldnt" -> "couldn't", "couldn'tve" and "couldnt've" -> "couldn't've".
# These are its right-hand sides; "couldntve", which lacks two, is not in it.
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

# Word -> word. The official table has six more entries without effect: let's
# and she's map to themselves, and words are lowercased, so Im, Ive, I'dve and
# Id've never occur. "somebody'd" is the wrong way round there too.
REPLACEMENTS = (
  {
    word[:i] + word[i + 1 :]: word
    for word in _CONTRACTIONS.split()
    for i, letter in enumerate(word)
    if letter == "'"
  }
  | {"somebody'd": "somebodyd"}
  | numerals(10)
)
ARTICLES = ("a", "an", "the")
PUNCTUATION = r""";/[]"{}()=+\_-><@`,?!"""
_DIGIT_COMMA = re.compile(r"\d,\d")
# The official pattern means to keep the point of "2.5", but "(?!<=" is not a
# look-behind: it removes every point that no digit follows, also that of "2.".
# Published scores depend on it.
_PERIOD = re.compile(r"(?!<=\d)\.(?!\d)")


def normalize(text: str) -> str:
  """Drops punctuation and articles, lowercases, writes numbers as digits.

  A character of PUNCTUATION is removed everywhere if it stands beside a space
  anywhere in the text, or if the text has a comma between digits; otherwise it
  becomes a space. Then follow points, case, articles and REPLACEMENTS:

    "The T-shirt, isnt it?"   "t shirt isn't it"
    "1,000 (one-two)"         "1000 onetwo"
    "No. 2.5"                 "no 2.5"

  Source: official VQA evaluation (GT-Vision-Lab/VQA, vqaEval.py), as in
  big_vision, evaluators/proj/paligemma/transfers/vqav2.py. The official code
  passes re.UNICODE as the number of substitutions, and so removes at most 32
  points of a text; we remove all, as big_vision does.
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
  """Returns the agreement of the prediction with the people who answered.

  It is the mean, over leaving out each person in turn, of min(1, matches / 3)
  against the others. With ten people, as in VQAv2, TextVQA, OK-VQA and VizWiz,
  0, 1, 2, 3, 4 and more matches give 0, 0.3, 0.6, 0.9 and 1. If all gave the
  same answer, the texts are compared without `normalize`.

  Source: as of `normalize`. Older versions of the official script, such as that
  in salesforce-lavis, normalize the prediction even if all agree. big_vision
  assumes ten answers; we count them.
  """
  prediction, *answers = (
    text.replace("\n", " ").replace("\t", " ").strip()
    for text in (prediction, *answers)
  )
  if len(set(answers)) > 1:
    prediction, *answers = map(normalize, (prediction, *answers))
  matches, people = answers.count(prediction), len(answers)
  # `matches` times, the person left out is one who agrees.
  agreeing = matches * min(1.0, (matches - 1) / 3)
  others = (people - matches) * min(1.0, matches / 3)
  return (agreeing + others) / people


@dataclasses.dataclass(frozen=True)
class VQAv2(Metric):
  """VQAv2 accuracy, over all and by type of answer.

  TextVQA is scored by it as well, as in big_vision; the scripts of its authors
  (mmf, EvalAIAnswerProcessor) normalize even if all agree, and before that drop
  commas and question marks and put a space before "'s".

  Keys: acc; acc/yesno, acc/number, acc/other (VizWiz: acc/unanswerable) and
  their num/yesno, ...; num.

  Attributes:
    by_type: read each example's "answer_type", one of ANSWER_TYPES. False for
      data sets without it, such as TextVQA and OK-VQA: the keys are acc and
      num.
  """

  by_type: bool = True
  higher_is_better = dict.fromkeys(
    ("acc", *(f"acc/{kind.replace('/', '')}" for kind in ANSWER_TYPES)), True
  )

  def score(self, prediction: str, example: Example, answer_key: str) -> Row:
    answers = answer_fields.texts(example, answer_key, "list of answers")
    if len(answers) < 2:
      expected = "the answers of several people"
      raise answer_fields.wrong(example, answer_key, expected)
    row = {"acc": vqav2(prediction, answers)}
    if self.by_type:
      kind = answer_fields.choice(
        example, "answer_type", "type of answer", ANSWER_TYPES
      )
      row[f"acc/{kind.replace('/', '')}"] = row["acc"]
    return row
