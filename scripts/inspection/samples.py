"""Examples as the model sees them: images, tokens and located objects."""

import dataclasses
import time
from typing import Any

import numpy as np

from paligemma.data import example_fields, location, sequence, tokenizer
from trainers.datasets import Dataset

MEASURED = 1000  # examples of a place whose texts are measured, at most
SECONDS = 20.0  # that it may take, as where ops decode videos
_LONG = 1 << 15  # tokens; no text is longer


@dataclasses.dataclass(frozen=True)
class Token:
  """A position of the sequence that is not padding."""

  text: str  # what it writes, or the name of a special token
  kind: str  # "prompt"; "supervised"; or "answer", one that is not supervised


@dataclasses.dataclass(frozen=True)
class Sample:
  """An example of a place."""

  index: int  # its place in the source
  where: str  # the place that errors name
  problem: str = ""  # why there is nothing else, "" if nothing is wrong
  frames: tuple[np.ndarray, ...] = ()  # uint8[res, res, 3] of each image
  prefix: str = ""  # the prompt
  # what is to be answered; several where any will do
  answers: tuple[str, ...] = ()
  tokens: tuple[Token, ...] = ()  # of the sequence
  padding: int = 0  # number of further positions
  truncated: bool = False  # whether the answer was cut
  # what the text of prompt and answer locates, in pixels of a frame
  objects: tuple[location.Object, ...] = ()


@dataclasses.dataclass(frozen=True)
class Lengths:
  """Tokens of texts: prompt with bos and newline, answer with eos."""

  prompts: np.ndarray  # of each example
  answers: np.ndarray  # of each example; 0 where there is no text
  bad: int  # number of further examples, which could not be read


def draw(place: Dataset, count: int) -> list[int]:
  """Indices of at most so many random examples, always the same."""
  size = min(len(place.source), place.limit or len(place.source))
  rng = np.random.default_rng(0)
  return rng.choice(size, min(count, size), replace=False).tolist()


def look(place: Dataset, tok: tokenizer.Tokenizer, index: int) -> Sample:
  """One example, prepared by the ops and preprocessing of a run."""
  where = f"{place.name} [{index}]"
  try:
    example = place.example(index)
    where = example_fields.where(example)
    prepared = place.prepare(example, index)
    # Random ops choose the same again.
    row = place.preprocess(example, np.random.default_rng(index))
  except ValueError as error:
    return Sample(index, where, problem=str(error))
  answers = _answers(place, prepared)
  return Sample(
    index,
    where,
    frames=_frames(row["image"]),
    prefix=prepared["prefix"],
    answers=answers,
    tokens=_tokens(row, tok),
    padding=int((~row["mask_input"].astype(bool)).sum()),
    truncated=bool(row.get("truncated", False)),
    objects=_located([prepared["prefix"], *answers[:1]], row["image"].shape),
  )


def measure(
  place: Dataset, tok: tokenizer.Tokenizer, count: int = MEASURED
) -> Lengths:
  """Lengths of texts of so many examples at most, whether they fit or not.

  No image is decoded but by ops.
  """
  prompts, answers, bad = [], [], 0
  end = time.perf_counter() + SECONDS
  for index in draw(place, count):
    if time.perf_counter() > end:
      break
    try:
      prepared = place.prepare(place.example(index), index)
      prefix = example_fields.text(prepared, "prefix")
      texts = _answers(place, prepared)
    except ValueError:
      bad += 1
      continue
    row = sequence.prompt(tok, prefix, _LONG)
    prompts.append(int(row["mask_input"].sum()))
    lengths = (len(tok.encode(text, eos=True)) for text in texts)
    answers.append(min(lengths, default=0))
  return Lengths(np.array(prompts, int), np.array(answers, int), bad)


def _answers(place, prepared) -> tuple[str, ...]:
  value: Any = prepared.get(place.answer_key)
  values = value if isinstance(value, list) else [value]
  return tuple(str(v) for v in values if isinstance(v, str | int | float))


def _frames(image):
  """Pixels of float[res, res, 3] in [-1, 1], or of several."""
  pixels = np.clip((image + 1) * 127.5, 0, 255).round().astype(np.uint8)
  return tuple(pixels if pixels.ndim == 4 else [pixels])


def _tokens(row, tok):
  supervised = row.get("mask_loss", np.zeros_like(row["text"]))
  return tuple(
    Token(
      _piece(tok, int(i)),
      "supervised" if loss else "answer" if ar else "prompt",
    )
    for i, seen, loss, ar in zip(
      row["text"], row["mask_input"], supervised, row["mask_ar"], strict=True
    )
    if seen
  )


def _piece(tok, i):
  special = {tok.pad_id: "<pad>", tok.bos_id: "<bos>", tok.eos_id: "<eos>"}
  return special.get(i) or tok.decode([i])


def _located(texts, shape):
  size = shape[-3:-1]
  found = [obj for text in texts for obj in location.parse(text, size)]
  return tuple(obj for obj in found if obj.box is not None)
