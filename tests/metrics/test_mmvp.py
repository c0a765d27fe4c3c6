import random

import pytest

from paligemma.metrics import mmvp


def example(pair, suffix="(a)", **more):
  return {"suffix": suffix, "pair": pair, **more}


def test_both_of_a_pair_must_be_right():
  examples = [
    example(1),
    example("2"),
    example(1, "(b)"),
    example("2", ["(b)", "b", "open"]),
    example(3),
    example(3),
  ]
  predictions = ["(A)", "(a)", "(b)\n", " Open", "(a)", "(b)"]
  found = mmvp.MMVP()(predictions, examples)
  assert found == {
    "acc": pytest.approx(2 / 3),
    "acc_question": pytest.approx(5 / 6),
    "num": 6.0,
  }


@pytest.mark.parametrize("count", [1, 3])
def test_a_pair_is_two(count):
  examples = [example(1), example(1)] + [example(2, _where="m:9")] * count
  message = (
    f'^m:9: "pair" is 2, expected two examples of each pair, not {count}.$'
  )
  with pytest.raises(ValueError, match=message):
    mmvp.MMVP()(["(a)"] * len(examples), examples)


@pytest.mark.parametrize("pair", [None, True, 1.0, [1]])
def test_the_name_of_a_pair(pair):
  with pytest.raises(
    ValueError, match=r'"pair" is .*expected a text or a number'
  ):
    mmvp.MMVP()(["(a)"] * 2, [example(pair)] * 2)


def test_over_random_pairs():
  rng = random.Random(53)
  right = [[rng.random() < 0.6 for _ in range(2)] for _ in range(5000)]
  items = [
    (example(pair), "(a)" if hit else "(b)")
    for pair, hits in enumerate(right)
    for hit in hits
  ]
  rng.shuffle(items)
  examples, predictions = zip(*items, strict=True)
  found = mmvp.MMVP()(predictions, examples)
  assert found["acc"] == pytest.approx(sum(a and b for a, b in right) / 5000)
  assert found["acc_question"] == pytest.approx(sum(map(sum, right)) / 10_000)
