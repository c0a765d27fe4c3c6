"""Summary of an import: counts, labels, boxes, tokens and notes."""

import collections
import dataclasses
import operator
from collections.abc import Mapping, Sequence

import numpy as np

from paligemma import messages
from paligemma.data import tokenizer as tokenizer_lib
from scripts.imports import splits

LABELS = 30  # listed, the most frequent ones
_HELD = 999  # of 1000 examples, whose tokens text_len is to hold


@dataclasses.dataclass(frozen=True)
class Summary:
  """What an import tells at its end; `str` shows it as tables."""

  text: str
  # what was corrected, or is to be known -> (count, first place)
  notes: Mapping[str, tuple[int, str]]
  # what was wrong with each image or annotation that was left out
  left_out: Sequence[str]

  def __str__(self):
    return self.text


def make(
  records: splits.Records,
  labels: Sequence[str],
  tokenizer: tokenizer_lib.Tokenizer | None,
  notes: Mapping[str, tuple[int, str]],
  left_out: Sequence[str],
) -> Summary:
  """Sums up what is to be written, and the notes and messages of Problems.

  Labels are those that objects can have. Without a tokenizer no token counts.
  """
  detects = all("objects" in x for lines in records.values() for x in lines)
  # label -> {split: objects}, without crowds
  objects = {label: collections.Counter() for label in labels if detects}
  boxes, crowds = [], 0
  for split, lines in records.items():
    for line in lines:
      for obj in line.get("objects", ()):
        if obj.get("iscrowd"):
          crowds += 1
          continue
        objects.setdefault(obj["label"], collections.Counter())[split] += 1
        boxes.append(_box(obj["box"], line))
  blocks = [
    _counted(records, objects, detects),
    _labelled(objects, list(records), crowds),
    _measured(boxes),
    _tokens(records, tokenizer),
    [
      f"note: {what}: {count:,}, the first at {first}"
      for what, (count, first) in notes.items()
    ],
  ]
  text = "\n\n".join("\n".join(block) for block in blocks if block)
  return Summary(text, notes, left_out)


def _counted(records, objects, detects):
  rows = [("split", "images", "examples", "empty answers")]
  if detects:
    rows[0] += ("images without objects", "objects")
  for split, lines in records.items():
    images = {image for line in lines for image in splits.images(line)}
    empty = sum(not line["suffix"] for line in lines) / len(lines)
    row = (split, f"{len(images):,}", f"{len(lines):,}", f"{empty:.1%}")
    if detects:
      without = images - {line["image"] for line in lines if line["objects"]}
      count = sum(by_split[split] for by_split in objects.values())
      row += (f"{len(without):,}", f"{count:,}")
    rows.append(row)
  return messages.aligned(rows)


def _labelled(objects, names, crowds):
  if not objects:
    return []
  used = {label: x.total() for label, x in objects.items() if x}
  used = dict(sorted(used.items(), key=operator.itemgetter(1), reverse=True))
  rows = [("label", *names)]
  for label in list(used)[:LABELS]:
    rows.append((f"{label:.40}", *(f"{objects[label][x]:,}" for x in names)))
  lines = messages.aligned(rows)
  if rest := list(used.values())[LABELS:]:
    lines.append(
      f"further labels ({len(rest)}): {rest[-1]:,} to {rest[0]:,} objects each"
    )
  if crowds:
    lines.append(f"crowds, neither asked for nor wrong to name: {crowds:,}")
  if unused := [label for label in objects if label not in used]:
    shown = ", ".join(f"{label:.40}" for label in unused[:LABELS])
    more = ", ..." * (len(unused) > LABELS)
    lines.append(f"labels without an object ({len(unused)}): {shown}{more}")
  return lines


def _box(box, line):
  """(share of the area of the image, height, width, image)."""
  y0, x0, y1, x1 = box
  height, width = y1 - y0, x1 - x0
  share = height * width / (line["height"] * line["width"])
  return share, height, width, line["image"]


def _measured(boxes):
  if not boxes:
    return []
  share = operator.itemgetter(0)
  rows = [("box", "height", "width", "share", "image")]
  for name, found in (("smallest", min), ("largest", max)):
    part, height, width, image = found(boxes, key=share)
    sides = f"{height:.6g}", f"{width:.6g}"
    rows.append((name, *sides, f"{part:.2%}", messages.shown(image)))
  return messages.aligned(rows)


def _tokens(records, tokenizer):
  if tokenizer is None:
    return [
      "tokens: not counted; pass --tokenizer FILE, the one of the "
      "checkpoint, for the text_len that holds them"
    ]
  newline = len(tokenizer.encode("\n"))
  prompts, answers, known = [], [], {}
  for lines in records.values():
    for line in lines:
      prefix = line["prefix"]
      if prefix not in known:  # of boxes it is the same in all lines
        known[prefix] = len(tokenizer.encode(prefix, bos=True)) + newline
      prompts.append(known[prefix])
      answers.append(len(tokenizer.encode(line["suffix"], eos=True)))
  # The last token is a target alone, see sequence.training.
  lengths = np.add(prompts, answers) - 1
  held, text_len = _quantiles(lengths, (_HELD, 1000))
  rows = [("tokens", "p50", "p99", "max")]
  for name, counts in (("prompt", prompts), ("answer", answers)):
    rows.append((name, *map(str, _quantiles(counts, (500, 990, 1000)))))
  return [
    *messages.aligned(rows),
    f"text_len {held} holds {_HELD / 10:g} % of the examples, {text_len} all",
  ]


def _quantiles(numbers, shares):
  """Quantiles, in thousandths, each of which is one of the numbers."""
  return np.quantile(numbers, np.divide(shares, 1000), method="inverted_cdf")
