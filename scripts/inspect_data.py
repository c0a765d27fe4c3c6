"""Shows what the model sees of the data of a config, on one HTML page.

    python -m scripts.inspect_data --out inspect.html \
      --config configs/transfers/forkme.py:res=224,train=data/train.jsonl

Of the training data and of every evaluator: examples as they are after all ops
and the resize, with prompt, answer and the boxes in them, or of a SigLIP with
all captions and the one that was drawn; their tokens, by colour in the loss or
not; and how long texts are against the room there is. Packed texts are shown
row by row.
Examples are drawn at random, always the same ones. One that cannot be used is
shown with its error. The page needs no other file. With --mask_codec it also
shows masks.
"""

import math
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from paligemma.data import objects
from scripts.inspection import page, samples
from trainers import command_line, evaluation, inputs, tasks
from trainers.tasks import datasets


def datasets_of(config: ConfigDict) -> tuple[Any, list[datasets.Dataset]]:
  """The tokenizer, and all that is read: training data, then evaluators.

  Raises:
    ValueError: a value of the config is wrong, or a file is not there.
  """
  task = tasks.of(config)
  tok = task.make_tokenizer(config, task.make_model(config))
  opened = inputs.make_sources(config)
  found = inputs.train_datasets(config, opened, tok)
  if config.evals:
    evaluators = evaluation.make_evaluators(config, tok)
    found += inputs.evaluation_datasets(task, evaluators)
  return tok, found


def inspect(
  config: ConfigDict,
  *,
  num: int = 50,
  title: str = "data",
  decode: objects.DecodeMasks | None = None,
) -> tuple[str, list[str]]:
  """The HTML, with `num` examples of each dataset, and a line about each.

  Masks are drawn with `decode`.

  Raises:
    ValueError: as `datasets_of`.
  """
  if num < 1:
    raise ValueError(f"--num is {num}, expected at least 1 example")
  tok, found = datasets_of(config)
  sections, lines, kinds = [], [], set()
  for dataset in found:
    shown = [
      samples.look(dataset, tok, index, decode)
      for index in samples.draw(dataset, num)
    ]
    lengths, bad = samples.measure(dataset, tok)
    charts = zip(dataset.rooms, lengths.T, strict=True)
    sections.append(
      page.section(
        dataset.name,
        _facts(dataset, tok, shown, lengths, bad),
        [page.histogram(name, of, room) for (name, room), of in charts],
        [page.card(sample) for sample in shown],
      )
    )
    kinds |= {token.kind for sample in shown for token in sample.texts.tokens}
    lines.append(_summary(dataset, shown, lengths))
  return page.page(title, sections, kinds), lines


def _facts(dataset, tok, shown, lengths, unmeasured):
  """The table at the head of a section."""
  through, bad = dataset.preprocess, sum(bool(s.problem) for s in shown)
  rows = {
    "source": f"{dataset.source}, {len(dataset.source):,} examples",
    "ops": ", ".join(map(str, through.ops)) or "none",
    "image": dataset.describe_image(),
    "text_len": f"{through.text_len}, too_long {through.too_long}",
    "measured": f"{len(lengths):,} examples",
    "cannot be used": _of(bad, len(shown)),
    "cannot be measured": str(unmeasured or ""),
    "too long": _of(too_long(dataset, lengths), len(lengths)),
    "note": dataset.note,
  }
  if not dataset.rooms:  # the images alone are read
    rows = {key: rows[key] for key in ("source", "ops", "image")}
  kinds = [token.kind for s in shown for token in s.texts.tokens]
  if supervised := kinds.count("supervised"):
    count = len(kinds) - kinds.count("start")
    positions = count + sum(s.texts.padding for s in shown)
    rows["supervised"] = (
      f"{supervised / count:.1%} of the tokens, "
      f"{supervised / positions:.1%} of all positions"
    )
  found = [("note", note) for note in dataset.read(tok).notes]
  return [(key, value) for key, value in rows.items() if value] + found


def too_long(dataset: datasets.Dataset, lengths: np.ndarray) -> int:
  """How many of the measured examples do not fit."""
  rooms = [math.inf if room is None else room for _, room in dataset.rooms]
  return int((lengths > np.array(rooms)).any(axis=1).sum())


def _summary(dataset, shown, lengths):
  """The line that the command prints."""
  bad = sum(bool(sample.problem) for sample in shown)
  line = (
    f"{dataset.name}: {len(dataset.source):,} examples, {len(shown)} "
    f"{'shown' if dataset.rows is None else 'rows shown'}, {bad} of these "
    "cannot be used"
  )
  if dataset.rooms:
    line += f"; {too_long(dataset, lengths)} of {len(lengths):,} are too long"
  return line


def _of(count, total):
  return f"{count} of {total} ({count / max(total, 1):.1%})"


def main() -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument("--num", type=int, default=50, help="of each source")
  parser.add_argument("--out", default="inspect.html", help="file to write")
  parser.add_argument("--mask_codec", help="vae-oid.npz, to draw masks with")
  options, config = command_line.parse(parser)
  text, lines = inspect(
    config,
    num=options.num,
    title=f"Data of {config.model.variant}",
    decode=inputs.mask_decoder(options.mask_codec),
  )
  pathlib.Path(options.out).write_text(text, encoding="utf-8")
  print("\n".join([*lines, f"written to {options.out}"]))


if __name__ == "__main__":
  command_line.run(main)
