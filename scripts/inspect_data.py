"""Shows what the model sees of the data of a config, on one HTML page.

    python -m scripts.inspect_data --out inspect.html \
      --config configs/transfers/forkme.py:res=224,train=data/train.jsonl

Of the training data and of every evaluator: examples as they are after all ops
and the resize, with prompt, answer and the boxes in them; their tokens, by
colour in the loss or not; and how long texts are against the room there is.
Examples are drawn at random, always the same ones. One that cannot be used is
shown with its error. The page needs no other file. With --mask_codec it also
shows masks.
"""

import pathlib
import types

from ml_collections import ConfigDict

import paligemma
from paligemma.data import objects
from scripts.inspection import page, samples
from trainers import command_line, datasets, evaluation, inputs, tasks


def datasets_of(
  config: ConfigDict,
) -> tuple[paligemma.Tokenizer, list[datasets.Dataset]]:
  """The tokenizer, and all that is read: training data, then evaluators.

  Raises:
    ValueError: a value of the config is wrong, or a file is not there.
  """
  task = tasks.of(config)
  model = task.make_model(config)
  if set(model.towers) != {"img", "llm"}:
    raise ValueError(
      f"{config.model.variant} has no image tower beside a decoder, and this "
      "page shows pictures with prompts; trainers.train --dry_run prints a "
      "table of the data"
    )
  tok = task.make_tokenizer(config, model)
  opened = types.SimpleNamespace(
    config=config, sources=inputs.make_sources(config)
  )
  found = datasets.train_datasets(opened, tok)
  if config.evals:
    evaluators = evaluation.make_evaluators(config, tok)
    found += datasets.evaluation_datasets([(e, None) for e in evaluators])
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
  sections, lines = [], []
  for dataset in found:
    indices = sorted(samples.draw(dataset, num))
    shown = [samples.look(dataset, tok, index, decode) for index in indices]
    lengths = samples.measure(dataset, tok)
    sections.append(
      page.section(
        dataset.name,
        _facts(dataset, shown, lengths),
        _charts(dataset, lengths),
        [page.card(sample) for sample in shown],
      )
    )
    lines.append(_summary(dataset, shown, lengths))
  return page.page(title, sections), lines


def _room(dataset):
  """Most tokens of prompt and answer that fit."""
  return dataset.preprocess.text_len + dataset.preprocess.train


def _charts(dataset, lengths):
  prompts, both = lengths.prompts, lengths.prompts + lengths.answers
  second = ("tokens of prompt and answer", both, _room(dataset))
  if dataset.decodes:
    second = ("tokens of the answer", lengths.answers, dataset.max_answer)
  first = ("tokens of the prompt", prompts, dataset.preprocess.text_len)
  return [page.histogram(*chart) for chart in (first, second)]


def _facts(dataset, shown, lengths):
  """The table at the head of a section."""
  through, total = dataset.preprocess, len(lengths.prompts)
  frames = f"{through.frames} frames of " if through.frames else ""
  rows = [
    ("source", f"{dataset.source}, {len(dataset.source):,} examples"),
    ("ops", ", ".join(map(str, through.ops)) or "none"),
    ("image", f"{frames}{through.res}x{through.res}, resize {through.resize}"),
    ("text_len", f"{through.text_len}, too_long {through.too_long}"),
    ("measured", f"{total:,} examples"),
    ("cannot be used", _of(sum(bool(s.problem) for s in shown), len(shown))),
    ("cannot be measured", str(lengths.bad)),
    ("too long", _of(too_long(dataset, lengths), total)),
  ]
  if not lengths.bad:
    del rows[-2]
  if through.train and (tokens := [t for s in shown for t in s.tokens]):
    supervised = sum(t.kind == "supervised" for t in tokens)
    positions = len(tokens) + sum(s.padding for s in shown)
    said = f"{supervised / len(tokens):.1%} of the tokens, "
    said += f"{supervised / positions:.1%} of all positions"
    rows.append(("supervised", said))
  return rows


def too_long(dataset: datasets.Dataset, lengths: samples.Lengths) -> int:
  """How many of the measured examples do not fit."""
  if dataset.decodes:
    over = lengths.prompts > dataset.preprocess.text_len
    # An answer of just so many tokens is complete, though without its eos.
    return int((over | (lengths.answers - 1 > dataset.max_answer)).sum())
  over = lengths.prompts + lengths.answers > _room(dataset)
  return int(over.sum())


def _summary(dataset, shown, lengths):
  """The line that the command prints."""
  bad = sum(bool(sample.problem) for sample in shown)
  return (
    f"{dataset.name}: {len(dataset.source):,} examples, {len(shown)} shown, "
    f"{bad} of these cannot be used; {too_long(dataset, lengths)} of "
    f"{len(lengths.prompts):,} are too long"
  )


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
