"""What the data tells before the first step: mistakes, notes, a table.

All texts are read where they can be read alone (texts.py). Beside that, rows
drawn from every source go through the preprocess that training and evaluation
use, a few with their image, the others over a picture of one pixel. Every
process looks at the same rows in the same order, and so stops at the same
mistake.
"""

import dataclasses
import math
import time
from collections.abc import Sequence

import numpy as np

from paligemma import messages, parameters, variants
from paligemma.checkpoints import formats
from paligemma.data import example_fields, tokenizer
from paligemma.data.tokenizer import Tokenizer
from trainers import inputs, places, texts
from trainers.places import Found, Place
from trainers.plan import Plan

ROWS = 256  # looked at, of all sources together
WHOLE = 2  # of each source, looked at with their image, however slow that is
SECONDS = 2.0  # for the others of all sources

_FIRST_LOC = 256_000  # <loc0000> in the vocabulary of published checkpoints
_LOW_SHARE = 0.01
_MARK = "qzxjv"  # no word of any data
_HEAD = (
  "data",
  "examples",
  "looked at",
  "prompt p50/p99/max",
  "answer",
  "text_len",
  "cut",
  "supervised",
)


def check(
  plan: Plan, tok: Tokenizer, evaluators: Sequence[inputs.Scheduled]
) -> str:
  """Looks at rows of all sources, and at the shapes of the initial weights.

  Args:
    plan: trainers.plan.Plan, with its sources.
    tok: the tokenizer.
    evaluators: list of (evaluator, steps between two runs or None).

  Returns:
    str of several lines: a table with a line per source, then notes.

  Raises:
    ValueError: an example cannot be used, what is to predict an answer can see
      it, or nothing is supervised; names the place and the example.
  """
  found_places = places.train_places(plan, tok)
  found_places += places.evaluation_places(evaluators)
  table, notes = [_HEAD], weight_notes(plan, tok)
  for place in found_places:
    found = _examine(place, tok, 1 / len(found_places))
    table.append(_line(place, found))
    notes += [f"{place.name}: {note}" for note in found.notes]
  lines = messages.aligned(table) + [f"note: {note}" for note in notes]
  return "\n".join(lines)


def notes(found_places: Sequence[Place], tok: Tokenizer) -> list[str]:
  """Looks at all that evaluation or prediction reads; see `check`.

  Args:
    found_places: list of places.Place.
    tok: the tokenizer.

  Returns:
    List of lines: what is odd.

  Raises:
    ValueError: as `check`.
  """
  return [
    f"note: {place.name}: {note}"
    for place in found_places
    for note in _examine(place, tok, 1 / len(found_places)).notes
  ]


def _examine(place, tok, share):
  """Found of all texts, and of a share of the rows looked at with pictures."""
  found = _combined(
    texts.read(place, tok),
    _sample(place, tok, rows=int(ROWS * share), seconds=SECONDS * share),
  )
  _conclude(place, found)
  return found


def look(
  place: Place, tok: Tokenizer, *, rows: int = ROWS, seconds: float = math.inf
) -> Found:
  """Looks at examples of one place, drawn at random, always the same ones.

  Args:
    place: a Place.
    tok: the tokenizer.
    rows: int, most examples to look at; at least WHOLE are.
    seconds: float, what those beyond WHOLE may take.

  Returns:
    Found.

  Raises:
    ValueError: as `check`.
  """
  found = _sample(place, tok, rows=rows, seconds=seconds)
  _conclude(place, found)
  return found


def _sample(place, tok, *, rows, seconds):
  """What `look` sees; examples whose locations an op may leave come first."""
  size = min(len(place.source), place.limit or len(place.source))
  count = min(max(rows, WHOLE), size)
  drawn = np.random.default_rng(0).choice(size, count, replace=False).tolist()
  first = texts.located(place)
  drawn = first + [index for index in drawn if index not in first]
  whole_ones = len(first) + WHOLE
  found, end = Found(), time.perf_counter() + seconds
  for number, index in enumerate(drawn):
    if number >= whole_ones and time.perf_counter() > end:
      break
    try:
      example = place.example(index)
      prepared = place.prepare(example, index)
      row = places.tokens(place, prepared)
      whole = number < whole_ones and place.preprocess(
        example, np.random.default_rng(index)
      )
    except ValueError as error:
      found.bad[index] = str(error)
      continue
    where = f"{place.name}: {example_fields.where(example)}"
    _check_answer_is_unseen(place, where, prepared, row, tok.pad_id)
    if place.metric and place.metric.group_key is None:
      without = {k: v for k, v in prepared.items() if k != "image"}
      texts.check_metric(place, [without])
    if whole:
      _check_whole(place, where, whole)
      found.notes = found.notes or _copied_answer(place, example, index)
    found.rows[index] = places.count(place, tok, prepared, row)
  return found


def _combined(read, sample):
  """What all texts and a sample of examples with pictures tell together."""
  bad = {**read.bad, **sample.bad}
  if not read.is_complete:
    return dataclasses.replace(sample, bad=bad)
  rows = {i: row for i, row in read.rows.items() if i not in bad}
  notes = [*read.notes, *sample.notes]
  return Found(rows, bad, notes, is_complete=True)


def _check_answer_is_unseen(place, where, prepared, row, pad_id):
  """Neither prompt nor masks show an answer to what is to predict it."""
  supervised = row.get("mask_loss", np.zeros_like(row["text"])).astype(bool)
  padding = ~row["mask_input"].astype(bool) | (row["text"] == pad_id)
  if (at := np.flatnonzero(supervised & padding)).size:
    raise ValueError(
      f"{where}: mask_loss supervises padding, at position {at[0]}; it must "
      "end with the answer"
    )
  # What predicts a token is the position before it. It sees the token, unless
  # that begins a block; if so, it sees none of those that follow either.
  if (at := np.flatnonzero(supervised & (row["mask_ar"] == 0))).size:
    raise ValueError(
      f"{where}: position {at[0] - 1} is to predict the token at {at[0]} and "
      "sees it; mask_ar must be 1 wherever mask_loss is"
    )
  if prepared.get("unsupervised"):  # the answer may begin with such a part
    prepared = {**prepared, "unsupervised": ()}
    row = places.tokens(place, prepared)
    supervised = row.get("mask_loss", supervised).astype(bool)
  no_answer = dict.fromkeys({"suffix", place.answer_key} & prepared.keys(), "")
  other = places.tokens(place, {**prepared, **no_answer})
  trains = "mask_loss" in row and not place.decodes
  prompt = int(supervised.argmax()) if trains else len(supervised)
  for key in ("text", "mask_ar", "mask_input"):
    if not np.array_equal(row[key][:prompt], other[key][:prompt]):
      hint = "; make it with the evaluation layout (train=False)"
      raise ValueError(
        f"{where}: the answer leaks into the prompt: without it, {key} of the "
        "prompt is another"
        + (hint if place.decodes and "mask_loss" in row else "")
      )


def _check_whole(place, where, row):
  """The image is one, and padding can be stacked upon the row."""
  if not np.isfinite(row["image"]).all():
    raise ValueError(f"{where}: the preprocessed image is not finite")
  padding = place.preprocess.padding()
  if _shapes(row) != _shapes(padding):
    raise ValueError(
      f"{where}: the row has {_shapes(row)}, a row of padding "
      f"{_shapes(padding)}; they must be alike to be stacked"
    )
  for key in ("mask_input", "mask_loss"):
    if key in padding and padding[key].any():
      raise ValueError(f"{place.name}: {key} of a row of padding is not all 0")


def _shapes(row):
  shown = (f"{k} {v.dtype}{list(v.shape)}" for k, v in sorted(row.items()))
  return ", ".join(shown)


def _copied_answer(place, example, index):
  """Notes on a field that becomes the answer and stands in the prompt too.

  Told by a mark in its place: it is then all of the answer, and in the prompt.
  Where other texts of the field stand in the prompt too, they are choices.
  """
  for key, value in example.items():
    texts = [value] if isinstance(value, str) else value
    if key.startswith("_") or not isinstance(texts, list):
      continue
    marks = [f"{_MARK}{i}x" for i in range(len(texts))]
    marked = marks[0] if isinstance(value, str) else marks
    try:
      prepared = place.prepare({**example, key: marked}, index)
    except Exception:  # an op that looks for something in the field
      continue
    prompt = str(prepared.get("prefix")).lower()
    in_prompt = [mark for mark in marks if mark in prompt]
    answer = prepared.get(place.answer_key)
    answers = answer if isinstance(answer, list) else [answer]
    answers = [str(answer).lower() for answer in answers]
    if len(in_prompt) == 1 and in_prompt[0] in answers:
      return [
        f'an op writes "{key}", which is the answer, into the prompt, as of '
        f"{example_fields.where(example)}; right only if it stands there "
        "among others to choose from"
      ]
  return []


def _conclude(place, found):
  """What only all rows of a place together tell."""
  if found.bad:
    count = f"{len(found.bad)} of {len(found.bad) + len(found.rows)} examples"
    first = found.bad[min(found.bad)]
    if not place.skips:
      raise ValueError(
        f"{place.name}: {count} looked at cannot be used, the first: {first}"
      )
    found.notes.append(f"{count} looked at will be skipped, such as {first}")
  supervised = [row.supervised for row in found.rows.values()]
  if None in supervised or not supervised:
    return
  if not any(supervised):
    raise ValueError(
      f"{place.name}: none of {len(supervised)} examples looked at has a "
      "supervised token; mask_loss is 0 throughout"
    )
  if empty := supervised.count(0):
    found.notes.append(
      f"{empty} of {len(supervised)} examples have no supervised token"
    )
  if (share := _share(place, found)) < _LOW_SHARE:
    found.notes.append(
      f"only {share:.2%} of text_len is supervised; if the rest is padding, a "
      "lower text_len saves time"
    )


def weight_notes(plan: Plan, tok: Tokenizer) -> list[str]:
  """What in the initial weights does not go with resolution or tokenizer.

  Args:
    plan: trainers.plan.Plan.
    tok: the tokenizer.

  Returns:
    List of lines.
  """
  config = plan.config
  leaves = formats.open(config.init).leaves if config.init else {}
  notes = []
  if positions := leaves.get(parameters.POSITIONS):
    ours = {**plan.trainable, **plan.frozen}[parameters.POSITIONS].shape[1]
    if positions.shape[1] != ours:
      notes.append(
        f"{config.init} has {positions.shape[1]} image positions, res "
        f"{config.res} makes {ours}: their embedding is resampled"
      )
  if table := leaves.get(parameters.EMBEDDING):
    rows = table.shape[0]
    if tok.vocab_size != rows:
      notes.append(
        f"{config.tokenizer} has {tok.vocab_size} ids, {config.init} a "
        f"vocabulary of {rows}: was it trained with this tokenizer?"
      )
    elif rows == variants.VOCAB_SIZE and tok.loc_id(0) != _FIRST_LOC:
      notes.append(
        f"{config.tokenizer} gives {tokenizer.LOC[0]} the id {tok.loc_id(0)}, "
        f"published checkpoints {_FIRST_LOC}: was {config.init} trained with "
        "this tokenizer?"
      )
  return notes


def _line(place, found):
  """The line of a place in the table."""
  rows = found.rows.values()
  answers = [row.answer for row in rows if row.answer is not None]
  supervises = any(row.supervised is not None for row in rows)
  return (
    place.name,
    f"{len(place.source):,}",
    str(len(found.rows) + len(found.bad)),
    _spread([row.prompt for row in rows]),
    _spread(answers),
    str(place.preprocess.text_len),
    str(sum(row.cut for row in rows)),
    f"{_share(place, found):.1%}" if supervises else "-",
  )


def _spread(numbers):
  if not numbers:
    return "-"
  marks = np.percentile(numbers, (50, 99, 100), method="higher")
  return "/".join(map(str, marks))


def _share(place, found):
  """Supervised tokens per input position."""
  supervised = [row.supervised for row in found.rows.values()]
  return sum(supervised) / (len(supervised) * place.preprocess.text_len)
