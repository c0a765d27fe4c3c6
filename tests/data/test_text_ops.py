import numpy as np
import pytest

from paligemma.data import text_ops


@pytest.fixture
def rng():
  return np.random.default_rng(0)


def test_format(rng):
  example = {"question": "how many?", "answer": 3, "suffix": "kept"}
  op = text_ops.Format("answer en {question}", "{answer}")
  assert op(example, rng) == {
    **example,
    "prefix": "answer en how many?",
    "suffix": "3",
  }
  op = text_ops.Format("caption en")
  assert op(example, rng) == {**example, "prefix": "caption en"}
  assert "prefix" not in example


def test_lower_and_choice(rng):
  example = {"suffix": ["A Dog", "A CAT", "A bird"]}
  chosen = set()
  for _ in range(50):
    one = text_ops.Choice("suffix")(example, rng)
    chosen.add(text_ops.Lower("suffix")(one, rng)["suffix"])
  assert chosen == {"a dog", "a cat", "a bird"}


def test_choice_depends_on_the_rng_alone():
  example = {"suffix": list("abcdefghijk")}
  op = text_ops.Choice("suffix")
  draws = [
    [op(example, rng)["suffix"] for _ in range(20)]
    for rng in map(np.random.default_rng, (5, 5, 6))
  ]
  assert draws[0] == draws[1] != draws[2]
