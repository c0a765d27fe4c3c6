"""Predictions that break careless scorers, and answers that are near them."""

import random

WORDS = """
a an the yes no none zero one two ten eleven twenty red cat T-shirt couldnt
couldn'tve couldntve somebodyd somebody'd im Im let's yall'dve ain't İstanbul
straße ﬁsh ñandú 東京 ١٢ ² 🙂 e\u0301 \u212a
"""
NUMBERS = """
0 -0 7 07 7. .7 7.0 6.65 1e3 1E-3 1e400 -1e400 nan inf Infinity 1_000 1,000 1,0
12.5% 5%% % -5% 0% 0.0 3.14.15 +3 1e-320 15 16 1000000000
"""
MARKS = ";/[]\"{}()=+\\_-><@`,?!.:'%$|&"
SPACES = (" ", "  ", "\n", "\t", "\r", "\x0b", "\u3000", "\u2028", "")


def texts(seed: int, number: int) -> list[str]:
  """Texts of zero to six words, numbers, marks and white space in between."""
  rng = random.Random(seed)
  return [_text(rng) for _ in range(number)]


def near(texts: list[str], seed: int) -> list[str]:
  """For each text the same, or one that differs by case, a mark or an edit."""
  rng = random.Random(seed)
  return [_near(text, rng) for text in texts]


def _text(rng):
  parts = []
  for _ in range(rng.choice([0, 1, 1, 1, 2, 2, 3, 6])):
    kinds = [WORDS.split(), WORDS.split(), NUMBERS.split(), MARKS]
    parts += [rng.choice(rng.choice(kinds)), rng.choice(SPACES)]
  return "".join(parts)


def _near(text, rng):
  place = rng.randrange(len(text) + 1)
  return rng.choice(
    [
      text,
      text,
      text.upper(),
      text.lower(),
      text.strip(),
      text[:place] + rng.choice(MARKS) + text[place:],
      text[:place] + text[place + 1 :],
      text + rng.choice(NUMBERS.split()),
      f" {text}.",
      _text(rng),
    ]
  )
