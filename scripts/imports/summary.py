"""Summary of an import: counts, labels, boxes, tokens and notes."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from paligemma import messages
from paligemma.data import tokenizer as tokenizer_lib
from scripts.imports import splits

LABELS = 30  # listed, the most frequent ones
_HELD = 999  # of 1000 examples, whose tokens text_len is to hold


@dataclasses.dataclass(frozen=True)
class Count:
  """How much a split holds."""

  images: int  # different ones
  examples: int  # lines of the JSONL
  empty: int  # those whose answer is empty
  # images in which nothing is annotated; None if nothing can be
  without: int | None = None


@dataclasses.dataclass(frozen=True)
class Box:
  """How large a box is."""

  # in pixels
  height: float
  width: float
  share: float  # of the area of its image
  image: str  # as the JSONL names it


@dataclasses.dataclass(frozen=True)
class Tokens:
  """How long texts are, as data/sequence.py lays them out."""

  # (p50, p99, max) in tokens, with bos, newline and eos
  prompt: tuple[int, int, int]
  answer: tuple[int, int, int]
  # the `text_len` of a config that holds prompt and answer of 99.9 % of the
  # examples
  held: int
  text_len: int  # the one that holds all


@dataclasses.dataclass(frozen=True)
class Summary:
  """All figures of an import; `str` shows them as tables."""

  counts: dict[str, Count]  # split -> Count
  # label -> {split: objects}, without crowds; the most frequent first. Empty
  # for captions and questions.
  labels: dict[str, dict[str, int]]
  crowds: int  # annotations that stand for many
  # boxes by their share of the image; None without any
  smallest: Box | None
  largest: Box | None
  tokens: Tokens | None  # None without a tokenizer
  # what was put right, or is to be known -> (count, first place)
  notes: dict[str, tuple[int, str]]
  # what was wrong with each image or annotation that was left out
  left_out: list[str]

  @property
  def unused(self) -> list[str]:
    """Labels that no object has."""
    return [label for label, by_split in self.labels.items() if not by_split]

  def __str__(self):
    blocks = (
      self._counted(),
      self._labelled(),
      self._boxes(),
      self._tokens(),
      [
        f"note: {what}: {count:,}, the first at {first}"
        for what, (count, first) in self.notes.items()
      ],
    )
    return "\n\n".join("\n".join(block) for block in blocks if block)

  def _counted(self):
    rows = [("split", "images", "examples", "empty answers")]
    if annotated := any(x.without is not None for x in self.counts.values()):
      rows[0] += ("images without objects", "objects")
    for split, count in self.counts.items():
      share = count.empty / count.examples
      row = (split, f"{count.images:,}", f"{count.examples:,}", f"{share:.1%}")
      if annotated:
        objects = sum(x.get(split, 0) for x in self.labels.values())
        row += (f"{count.without:,}", f"{objects:,}")
      rows.append(row)
    return messages.aligned(rows)

  def _labelled(self):
    if not self.labels:
      return []
    used = [label for label in self.labels if self.labels[label]]
    rows = [("label", *self.counts)]
    for label in used[:LABELS]:
      counts = (self.labels[label].get(split, 0) for split in self.counts)
      rows.append((f"{label:.40}", *(f"{count:,}" for count in counts)))
    lines = messages.aligned(rows)
    if rest := used[LABELS:]:
      most, least = (sum(self.labels[x].values()) for x in (rest[0], rest[-1]))
      lines.append(
        f"further labels ({len(rest)}): {least:,} to {most:,} objects each"
      )
    if self.crowds:
      lines.append(
        f"crowds, neither asked for nor wrong to name: {self.crowds:,}"
      )
    if unused := self.unused:
      names = ", ".join(f"{label:.40}" for label in unused[:LABELS])
      more = ", ..." * (len(unused) > LABELS)
      lines.append(f"labels without an object ({len(unused)}): {names}{more}")
    return lines

  def _boxes(self):
    if self.smallest is None:
      return []
    rows = [("box", "height", "width", "share", "image")]
    for name, box in (("smallest", self.smallest), ("largest", self.largest)):
      sides = f"{box.height:.6g}", f"{box.width:.6g}"
      rows.append((name, *sides, f"{box.share:.2%}", messages.shown(box.image)))
    return messages.aligned(rows)

  def _tokens(self):
    if self.tokens is None:
      return [
        "tokens: not counted; pass --tokenizer FILE, the one of the "
        "checkpoint, for the text_len that holds them"
      ]
    rows = [("tokens", "p50", "p99", "max")]
    rows += [("prompt", *map(str, self.tokens.prompt))]
    rows += [("answer", *map(str, self.tokens.answer))]
    return [
      *messages.aligned(rows),
      f"text_len {self.tokens.held} holds {_HELD / 10:g} % of the examples, "
      f"{self.tokens.text_len} all",
    ]


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
  objects = {label: collections.Counter() for label in labels if detects}
  boxes, crowds, counts = [], 0, {}
  for split, lines in records.items():
    with_objects = set()
    for line in lines:
      for obj in line.get("objects", ()):
        with_objects.add(line["image"])
        if obj.get("iscrowd"):
          crowds += 1
          continue
        objects.setdefault(obj["label"], collections.Counter())[split] += 1
        boxes.append(_box(obj["box"], line))
    images = {image for line in lines for image in splits.images(line)}
    counts[split] = Count(
      len(images),
      len(lines),
      sum(not line["suffix"] for line in lines),
      len(images) - len(with_objects) if detects else None,
    )
  by_share = dict(key=lambda box: box.share, default=None)
  return Summary(
    counts,
    {
      label: dict(count)
      for label, count in sorted(objects.items(), key=lambda x: -x[1].total())
    },
    crowds,
    min(boxes, **by_share),
    max(boxes, **by_share),
    tokenizer and _count_tokens(records, tokenizer),
    dict(notes),
    list(left_out),
  )


def _box(box, line):
  y0, x0, y1, x1 = box
  height, width = y1 - y0, x1 - x0
  share = height * width / (line["height"] * line["width"])
  return Box(height, width, share, line["image"])


def _count_tokens(records, tokenizer):
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
  return Tokens(
    _quantiles(prompts, (500, 990, 1000)),
    _quantiles(answers, (500, 990, 1000)),
    held,
    text_len,
  )


def _quantiles(numbers, shares):
  """Quantiles, in thousandths, each of which is one of the numbers."""
  ordered = sorted(numbers)
  return tuple(
    int(ordered[-(-share * len(ordered) // 1000) - 1]) for share in shares
  )
