"""Checks of the data before the first step: errors, notes and a table.

All texts are read where a source can give them alone (texts.py). Besides, a
sample of every source goes through the preprocess that training and evaluation
use, a few examples with their image, the others with one of a single pixel.
Every process draws the same sample, and so stops at the same error.
"""

import math
import time
from collections.abc import Sequence

import numpy as np

from paligemma import messages, parameters, variants
from paligemma.checkpoints import formats
from paligemma.data import example_fields, pairs, tokenizer
from paligemma.data.tokenizer import Tokenizer
from trainers import captions, datasets, inputs, start, text_lengths, texts
from trainers.datasets import Dataset, Findings
from trainers.plan import Plan

NUM_EXAMPLES = 256  # in the samples of all sources together
NUM_WITH_IMAGE = 2  # of each source, however slow that is
SECONDS = 2.0  # for the others of all sources

_FIRST_LOC = 256_000  # <loc0000> in the vocabulary of published checkpoints
_LOW_SHARE = 0.01
_MARKER = "qzxjv"  # no word of any data
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
  """Checks all sources of a run, and the shapes of its initial weights.

  Returns:
    A table with a line per source, then notes. The plan then has text_lengths.

  Raises:
    ValueError: an example cannot be used, a position can attend to the answer
      that it must predict, or nothing is supervised; names the source and the
      example.
  """
  all_of_run = datasets.train_datasets(plan, tok)
  all_of_run += datasets.evaluation_datasets(evaluators)
  table, notes = [_HEAD], weight_notes(plan, tok)
  lengths = []
  for dataset in all_of_run:
    found = _examine(dataset, tok, 1 / len(all_of_run))
    table.append(_line(dataset, found))
    notes += [f"{dataset.name}: {note}" for note in found.notes]
    if dataset.trains:
      lengths.append(found.lengths)
  if plan.pads_texts:
    plan.text_lengths, plan.longest_text = text_lengths.choose(
      lengths,
      [weight for _, weight in plan.sources],
      batch_size=plan.config.batch_size,
      text_len=plan.config.text_len,
    )
  lines = messages.aligned(table) + [f"note: {note}" for note in notes]
  return "\n".join(lines)


def notes(checked: Sequence[Dataset], tok: Tokenizer) -> list[str]:
  """Lines on what is odd in what evaluation reads; raises as `check`."""
  return [
    f"note: {dataset.name}: {note}"
    for dataset in checked
    for note in _examine(dataset, tok, 1 / len(checked)).notes
  ]


def _examine(dataset, tok, share):
  """Findings in all texts, and in a share of the sample."""
  num, seconds = int(NUM_EXAMPLES * share), SECONDS * share
  if isinstance(dataset.preprocess, pairs.Pairs):
    found = captions.read(dataset)
    num = NUM_WITH_IMAGE if found.is_complete else num
    sample = _sample_pairs(dataset, num=num, seconds=seconds)
  else:
    found = texts.read(dataset, tok)
    sample = _sample(dataset, tok, num=num, seconds=seconds)
  errors = {**found.errors, **sample.errors}
  if found.is_complete:
    counts = {i: x for i, x in found.counts.items() if i not in errors}
    lengths = [
      x.prompt + x.answer - 1
      for x in found.counts.values()
      if None not in (x.prompt, x.answer)
    ]
    found = Findings(counts, errors, found.notes + sample.notes)
    found.lengths = np.array(lengths)
  else:
    found = Findings(sample.counts, errors, sample.notes)
  _conclude(dataset, found)
  if dataset.note:
    found.notes.insert(0, dataset.note)
  return found


def look(
  dataset: Dataset,
  tok: Tokenizer,
  *,
  num: int = NUM_EXAMPLES,
  seconds: float = math.inf,
) -> Findings:
  """Checks a sample of a dataset, always the same one; raises as `check`.

  It has at most `num` examples, and at least NUM_WITH_IMAGE; those beyond may
  take so many seconds.
  """
  found = _sample(dataset, tok, num=num, seconds=seconds)
  _conclude(dataset, found)
  return found


def _sample(dataset, tok, *, num, seconds):
  """What `look` finds; examples whose locations an op may leave come first."""
  drawn = _draw(dataset, num)
  first = texts.located(dataset)
  drawn = first + [index for index in drawn if index not in first]
  num_with_image = len(first) + NUM_WITH_IMAGE
  found, end = Findings(), time.perf_counter() + seconds
  for number, index in enumerate(drawn):
    with_image = number < num_with_image
    if not with_image and time.perf_counter() > end:
      break
    try:
      example = dataset.example(index)
      prepared = dataset.prepare(example, index)
      row = dataset.tokenize(prepared)
      if with_image:
        full_row = dataset.preprocess(example, np.random.default_rng(index))
    except ValueError as error:
      found.errors[index] = str(error)
      continue
    where = f"{dataset.name}: {example_fields.where(example)}"
    _check_answer_is_unseen(dataset, where, prepared, row, tok.pad_id)
    if dataset.metric and dataset.metric.group_key is None:
      texts.check_metric(dataset, [prepared])
    if with_image:
      _check_arrays(dataset, where, full_row)
      found.notes = found.notes or _copied_answer(dataset, example, index)
    found.counts[index] = dataset.count(tok, prepared, row)
  return found


def _sample_pairs(dataset, *, num, seconds):
  """What a sample of images and captions shows, see `look`."""
  found, end = Findings(), time.perf_counter() + seconds
  for number, index in enumerate(_draw(dataset, num)):
    if number >= NUM_WITH_IMAGE and time.perf_counter() > end:
      break
    try:
      example, rng = dataset.example(index), np.random.default_rng(index)
      row = dataset.preprocess(example, rng)
      prepared = dataset.preprocess.apply_ops(example, rng)
      found.counts[index], _ = captions.count(dataset, prepared)
    except ValueError as error:
      found.errors[index] = str(error)
      continue
    where = f"{dataset.name}: {example_fields.where(example)}"
    _check_arrays(dataset, where, row)
  return found


def _draw(dataset, num):
  """Indices of a sample, always the same one."""
  size = min(len(dataset.source), dataset.limit or len(dataset.source))
  num = min(max(num, NUM_WITH_IMAGE), size)
  return np.random.default_rng(0).choice(size, num, replace=False).tolist()


def _check_answer_is_unseen(dataset, where, prepared, row, pad_id):
  """Raises if a position can attend to the token that it must predict."""
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
    row = dataset.tokenize(prepared)
    supervised = row.get("mask_loss", supervised).astype(bool)
  answer_keys = {"suffix", dataset.answer_key} & prepared.keys()
  no_answer = dict.fromkeys(answer_keys, "")
  other = dataset.tokenize({**prepared, **no_answer})
  trains = "mask_loss" in row and not dataset.decodes
  prompt = int(supervised.argmax()) if trains else len(supervised)
  for key in ("text", "mask_ar", "mask_input"):
    if not np.array_equal(row[key][:prompt], other[key][:prompt]):
      hint = "; make it with the evaluation layout (train=False)"
      raise ValueError(
        f"{where}: the answer leaks into the prompt: without it, {key} of the "
        "prompt is another"
        + (hint if dataset.decodes and "mask_loss" in row else "")
      )


def _check_arrays(dataset, where, row):
  """Raises if the image is not finite, or padding cannot be stacked on it."""
  if not all(np.isfinite(x).all() for x in row.values()):
    raise ValueError(f"{where}: the preprocessed image is not finite")
  padding = dataset.preprocess.padding()
  if _shapes(row) != _shapes(padding):
    raise ValueError(
      f"{where}: the row has {_shapes(row)}, a row of padding "
      f"{_shapes(padding)}; they must be alike to be stacked"
    )
  for key in ("mask_input", "mask_loss"):
    if key in padding and padding[key].any():
      raise ValueError(
        f"{dataset.name}: {key} of a row of padding is not all 0"
      )


def _shapes(row):
  shown = (f"{k} {v.dtype}{list(v.shape)}" for k, v in sorted(row.items()))
  return ", ".join(shown)


def _copied_answer(dataset, example, index):
  """Notes on a field that becomes the answer and is in the prompt too.

  A marker stands for its text: is it the whole answer, and in the prompt too?
  Where other texts of the field are in the prompt, they are choices.
  """
  for key, value in example.items():
    texts = [value] if isinstance(value, str) else value
    if key.startswith("_") or not isinstance(texts, list):
      continue
    markers = [f"{_MARKER}{i}x" for i in range(len(texts))]
    marked = markers[0] if isinstance(value, str) else markers
    try:
      prepared = dataset.prepare({**example, key: marked}, index)
    except Exception:  # an op that looks for something in the field
      continue
    prompt = str(prepared.get("prefix")).lower()
    in_prompt = [marker for marker in markers if marker in prompt]
    answer = prepared.get(dataset.answer_key)
    answers = answer if isinstance(answer, list) else [answer]
    answers = [str(answer).lower() for answer in answers]
    if len(in_prompt) == 1 and in_prompt[0] in answers:
      return [
        f'an op writes "{key}", which is the answer, into the prompt, as of '
        f"{example_fields.where(example)}; right only if it stands there "
        "among others to choose from"
      ]
  return []


def _conclude(dataset, found):
  """Adds what only all examples together show; raises if it is an error."""
  if found.errors:
    bad = len(found.errors)
    count = f"{bad} of {bad + len(found.counts)} examples"
    first = found.errors[min(found.errors)]
    if not dataset.skips:
      raise ValueError(
        f"{dataset.name}: {count} looked at cannot be used, the first: {first}"
      )
    found.notes.append(f"{count} looked at will be skipped, such as {first}")
  supervised = [row.supervised for row in found.counts.values()]
  if None in supervised or not supervised:
    return
  if not any(supervised):
    raise ValueError(
      f"{dataset.name}: none of {len(supervised)} examples looked at has a "
      "supervised token; mask_loss is 0 throughout"
    )
  if empty := supervised.count(0):
    found.notes.append(
      f"{empty} of {len(supervised)} examples have no supervised token"
    )
  share = _share(dataset, found)
  if share < _LOW_SHARE and not dataset.is_packed:
    found.notes.append(
      f"only {share:.2%} of text_len is supervised; if the rest is padding, a "
      "lower text_len saves time"
    )


def weight_notes(plan: Plan, tok: Tokenizer) -> list[str]:
  """What in the initial weights does not go with resolution or tokenizer."""
  config = plan.config
  source = start.source(config)
  leaves = formats.open(source).leaves if source else {}
  is_joined = isinstance(source, dict)
  img, llm = (source[x] if is_joined else source for x in ("img", "llm"))
  notes, name = [], parameters.POSITIONS
  theirs, ours = leaves.get(name), {**plan.trainable, **plan.frozen}.get(name)
  if theirs and ours and theirs.shape[1] != ours.shape[1]:
    notes.append(
      f"{img} has {theirs.shape[1]} image positions, res {config.res} "
      f"makes {ours.shape[1]}: their embedding is resampled"
    )
  if table := leaves.get(parameters.EMBEDDING):
    rows = table.shape[0]
    if tok.vocab_size != rows:
      notes.append(
        f"{config.tokenizer} has {tok.vocab_size} ids, {llm} a "
        f"vocabulary of {rows}: was it trained with this tokenizer?"
      )
    elif rows == variants.VOCAB_SIZE and tok.loc_id(0) != _FIRST_LOC:
      notes.append(
        f"{config.tokenizer} gives {tokenizer.LOC[0]} the id {tok.loc_id(0)}, "
        f"published checkpoints {_FIRST_LOC}: was {llm} trained with "
        "this tokenizer?"
      )
  return notes


def _line(dataset, found):
  """The line of a dataset in the table."""
  rows = found.counts.values()
  answers = [row.answer for row in rows if row.answer is not None]
  supervises = any(row.supervised is not None for row in rows)
  return (
    dataset.name,
    f"{len(dataset.source):,}",
    str(len(found.counts) + len(found.errors)),
    _spread([row.prompt for row in rows if row.prompt is not None]),
    _spread(answers),
    str(dataset.preprocess.text_len),
    str(sum(row.cut for row in rows)),
    f"{_share(dataset, found):.1%}" if supervises else "-",
  )


def _spread(numbers):
  if not numbers:
    return "-"
  spread = np.percentile(numbers, (50, 99, 100), method="higher")
  return "/".join(map(str, spread))


def _share(dataset, found):
  """Supervised tokens per input position."""
  supervised = [row.supervised for row in found.counts.values()]
  return sum(supervised) / (len(supervised) * dataset.preprocess.text_len)
