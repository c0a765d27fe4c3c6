"""Examples as the model sees them: images, tokens and located objects."""

import dataclasses
import time
from typing import Any

import numpy as np

from paligemma.data import example_fields, location, sequence, tokenizer
from paligemma.data import objects as objects_lib
from trainers.datasets import Dataset

MEASURED = 1000  # examples of a dataset whose texts are measured, at most
SECONDS = 20.0  # that it may take, as where ops decode videos
_LONG = 1 << 15  # tokens; no text is longer


@dataclasses.dataclass(frozen=True)
class Token:
  """A position of the sequence that is not padding."""

  text: str  # what it writes, or the name of a special token
  kind: str  # "prompt"; "supervised"; or "answer", one that is not supervised


@dataclasses.dataclass(frozen=True)
class Sample:
  """An example of a dataset."""

  index: int  # its position in the source
  where: str  # the file and line that errors name
  problem: str = ""  # why there is nothing else, "" if nothing is wrong
  frames: tuple[np.ndarray, ...] = ()  # uint8[res, res, 3] of each image
  prefix: str = ""  # the prompt
  # what is to be answered; several where any will do
  answers: tuple[str, ...] = ()
  tokens: tuple[Token, ...] = ()  # of the sequence
  padding: int = 0  # number of further positions
  truncated: bool = False  # whether the answer was cut
  # in prompt and answer, in pixels of a frame
  objects: tuple[objects_lib.Object, ...] = ()
  malformed: tuple[str, ...] = ()  # what is wrong with further ones


@dataclasses.dataclass(frozen=True)
class Lengths:
  """Tokens of texts: prompt with bos and newline, answer with eos."""

  prompts: np.ndarray  # of each example
  answers: np.ndarray  # of each example; 0 where there is no text
  bad: int  # number of further examples, which could not be read


def draw(dataset: Dataset, count: int) -> list[int]:
  """Indices of at most so many random examples, always the same."""
  size = min(len(dataset.source), dataset.limit or len(dataset.source))
  rng = np.random.default_rng(0)
  return rng.choice(size, min(count, size), replace=False).tolist()


def look(
  dataset: Dataset,
  tok: tokenizer.Tokenizer,
  index: int,
  decode: objects_lib.DecodeMasks | None = None,
) -> Sample:
  """One example, prepared by the ops and preprocessing of a run.

  Objects have masks where there is a `decode`.
  """
  where = f"{dataset.name} [{index}]"
  try:
    example = dataset.example(index)
    where = example_fields.where(example)
    prepared = dataset.prepare(example, index)
    # Random ops choose the same again.
    row = dataset.preprocess(example, np.random.default_rng(index))
  except ValueError as error:
    return Sample(index, where, problem=str(error))
  answers = _answers(dataset, prepared)
  texts, size = [prepared["prefix"], *answers[:1]], row["image"].shape[-3:-1]
  return Sample(
    index,
    where,
    frames=_frames(row["image"]),
    prefix=prepared["prefix"],
    answers=answers,
    tokens=_tokens(row, tok),
    padding=int((~row["mask_input"].astype(bool)).sum()),
    truncated=bool(row.get("truncated", False)),
    objects=tuple(
      obj
      for text in texts
      for obj in objects_lib.parse(text, size, decode=decode)
    ),
    malformed=tuple(
      f"{obj.label or 'object'}: {obj.problem}"
      for text in texts
      for obj in location.parse(text, size)
      if obj.box and obj.problem
    ),
  )


def measure(
  dataset: Dataset, tok: tokenizer.Tokenizer, count: int = MEASURED
) -> Lengths:
  """Lengths of texts of so many examples at most, whether they fit or not.

  No image is decoded but by ops.
  """
  prompts, answers, bad = [], [], 0
  end = time.perf_counter() + SECONDS
  for index in draw(dataset, count):
    if time.perf_counter() > end:
      break
    try:
      prepared = dataset.prepare(dataset.example(index), index)
      prefix = example_fields.text(prepared, "prefix")
      texts = _answers(dataset, prepared)
    except ValueError:
      bad += 1
      continue
    row = sequence.prompt(tok, prefix, _LONG)
    prompts.append(int(row["mask_input"].sum()))
    lengths = (len(tok.encode(text, eos=True)) for text in texts)
    answers.append(min(lengths, default=0))
  return Lengths(np.array(prompts, int), np.array(answers, int), bad)


def _answers(dataset, prepared) -> tuple[str, ...]:
  value: Any = prepared.get(dataset.answer_key)
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
