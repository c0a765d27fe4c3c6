"""The fuzz driver reads what is right, and tells bad from good."""

import json
import random

import pytest

from tests.stress import fuzz


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  return fuzz.Fuzz(tmp_path_factory.mktemp("fuzz"))


def test_what_is_not_damaged_is_read(made, monkeypatch):
  monkeypatch.setattr(fuzz, "damage_file", lambda rng, path: None)
  monkeypatch.setattr(fuzz, "damage_bytes", lambda rng, data: bytes(data))
  monkeypatch.setattr(
    fuzz, "damage_json", lambda rng, value: json.dumps(value).encode()
  )
  for kind in made.kinds.keys() - {"import", "safetensors", "predictions"}:
    assert fuzz.run_case(made, 1, kind, 0) == (None, "read"), kind


def test_cases_of_a_number_are_the_same():
  value = {"a": [1, {"b": "x"}], "c": None}
  for damage, what in (
    (fuzz.damage_json, value),
    (fuzz.damage_bytes, bytes(range(256))),
  ):
    first = [damage(random.Random(f"{i}"), what) for i in range(50)]
    again = [damage(random.Random(f"{i}"), what) for i in range(50)]
    assert first == again
    assert len(set(first)) > 10


@pytest.mark.parametrize(
  ("error", "bad"),
  [
    (ValueError("x.jsonl:1: no image"), None),
    (OSError(28, "No space left"), None),
    (ValueError("two\nlines"), "two"),
    (ValueError("long " * 1000), "of 5000 characters"),
    (TypeError("half an annotation"), "TypeError: half an annotation"),
    (RecursionError("deep"), "RecursionError: deep"),
  ],
)
def test_anything_but_one_line_is_bad(made, monkeypatch, error, bad):
  def fails(rng, folder):
    raise error

  monkeypatch.setitem(made.kinds, "npz", fails)
  problem, _ = fuzz.run_case(made, 1, "npz", 0)
  assert (problem is None) == (bad is None)
  if bad is not None:
    assert bad in problem
