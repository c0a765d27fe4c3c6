"""Checks of the data before the first step: errors, notes and a table.

All texts are read where a source can give them alone (texts.py). Besides, a
sample of every source goes through the preprocess that training and evaluation
use, a few examples with their image, the others with one of a single pixel.
Every process draws the same sample, and so stops at the same error.
"""

import math
from collections.abc import Sequence

import numpy as np

from paligemma import messages, parameters, variants
from paligemma.checkpoints import formats
from paligemma.data import tokenizer
from paligemma.data.tokenizer import Tokenizer
from trainers import inputs, start, text_lengths
from trainers.plan import Plan
from trainers.tasks.datasets import Dataset, Findings

NUM_EXAMPLES = 256  # in the samples of all sources together
SECONDS = 2.0  # for the others of all sources

_FIRST_LOC = 256_000  # <loc0000> in the vocabulary of published checkpoints
_LOW_SHARE = 0.01
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
  all_of_run = inputs.train_datasets(plan.config, plan.sources, tok)
  all_of_run += inputs.evaluation_datasets(
    plan.task, [evaluator for evaluator, _ in evaluators]
  )
  shares = _shares(plan)
  table = [(*_HEAD, "drawn" if shares else "")]
  notes = weight_notes(plan, tok)
  lengths = []
  for dataset in all_of_run:
    found = _examine(dataset, tok, 1 / len(all_of_run))
    table.append((*_line(dataset, found), shares.get(dataset.name, "")))
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
  found = dataset.read(tok)
  sample = dataset.sample(tok, num=num, seconds=seconds)
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

  It has at most `num` examples, and at least datasets.NUM_WITH_IMAGE; those
  beyond may take so many seconds.
  """
  found = dataset.sample(tok, num=num, seconds=seconds)
  _conclude(dataset, found)
  return found


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
  if share < _LOW_SHARE and dataset.rows is None:
    found.notes.append(
      f"only {share:.2%} of text_len is supervised; if the rest is padding, a "
      "lower text_len saves time"
    )


def weight_notes(plan: Plan, tok: Tokenizer) -> list[str]:
  """What in the initial weights does not go with resolution or tokenizer.

  Raises:
    ValueError: they are one tower alone, and the model is no SigLIP.
  """
  config = plan.config
  source = start.source(config)
  leaves = formats.open(source).leaves if source else {}
  is_joined = isinstance(source, dict)
  ours = {**plan.trainable, **plan.frozen}
  if is_joined and len(source) == 1 and parameters.EMBEDDING in ours:
    raise ValueError(
      f'towers of a checkpoint are {sorted(source)}, expected "img" and "llm"'
    )
  img, llm = (source.get(x) if is_joined else source for x in ("img", "llm"))
  notes, name = [], parameters.POSITIONS
  theirs, ours = leaves.get(name), ours.get(name)
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


def _shares(plan):
  """How much of a mixture each source is; {} of one source."""
  weights = [weight for _, weight in plan.sources]
  names = [f"train.{name}" for name in plan.config.train.sources]
  if len(names) == 1:
    return {}
  return {
    name: f"{weight / sum(weights):.1%}"
    for name, weight in zip(names, weights, strict=True)
  }


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
