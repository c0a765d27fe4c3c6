"""Captions as people write them, and such as break tokenizers."""

import json
import pathlib
import random

PIECES = json.loads((pathlib.Path(__file__).parent / "pieces.json").read_text())


def captions(seed: int, number: int) -> list[str]:
  """Captions, some with fragments in them, fragments alone, and single signs.

  None has a line break, which makes two captions of one for PTBTokenizer.
  """
  rng = random.Random(seed)
  return [rng.choice(_KINDS)(rng) for _ in range(number)]


def near(caption: str, rng: random.Random) -> str:
  """The caption, or one with other words here and there."""
  words = caption.split(" ")
  for _ in range(rng.randrange(4)):
    words[rng.randrange(len(words))] = rng.choice(PIECES["fragments"])
  return " ".join(words)


def _plain(rng):
  parts = [rng.choice(PIECES[k]) for k in ("subjects", "verbs", "objects")]
  if rng.random() < 0.3:
    parts += ["and", rng.choice(PIECES["objects"])]
  return " ".join(parts) + rng.choice(["", "", ".", " ."])


def _mixed(rng):
  return near(_plain(rng), rng)


def _fragmented(rng):
  parts = []
  for _ in range(rng.randint(0, 9)):
    parts += [
      rng.choice(PIECES["fragments"]),
      rng.choice(["", " ", " ", "\t", "  "]),
    ]
  return "".join(parts)


def _signs(rng):
  return "".join(rng.choices(PIECES["signs"], k=rng.randint(1, 14)))


_KINDS = (_plain, _mixed, _fragmented, _fragmented, _signs)
