"""Names, rules and comparisons of parameter trees."""

import re

import numpy as np
import pytest

from paligemma import registry, tree

NESTED = {
  "llm": {"layers": {"attn": {"w": 3}, "mlp": {"w": 5}}, "norm": 7},
  "img": {"head": {"kernel": 11, "bias": 13}},
}
FLAT = {
  "img/head/bias": 13,
  "img/head/kernel": 11,
  "llm/layers/attn/w": 3,
  "llm/layers/mlp/w": 5,
  "llm/norm": 7,
}


def test_flatten_joins_and_sorts():
  assert list(tree.flatten(NESTED).items()) == list(FLAT.items())


def test_flatten_of_flat_is_itself():
  assert tree.flatten(FLAT) == FLAT


def test_unflatten_inverts_flatten():
  assert tree.unflatten(tree.flatten(NESTED)) == NESTED


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a")])
def test_unflatten_refuses_a_leaf_that_is_a_prefix(names):
  with pytest.raises(ValueError, match="leaf"):
    tree.unflatten(dict.fromkeys(names, 1))


def test_did_you_mean():
  options = ["exact_match", "anls", "VQA"]
  assert registry.did_you_mean("exat_match", options) == (
    ' Did you mean "exact_match"?'
  )
  assert registry.did_you_mean("vqa", options) == ' Did you mean "VQA"?'
  assert registry.did_you_mean("bleu", options) == ""


def test_lookup():
  table = {"greedy": 2, "nucleus": 3}
  assert registry.lookup(table, "greedy", "sampler") == 2
  message = (
    'unknown sampler "gredy", expected one of: greedy, nucleus. '
    'Did you mean "greedy"?'
  )
  with pytest.raises(ValueError, match=re.escape(message)):
    registry.lookup(table, "gredy", "sampler")


def test_match_first_takes_the_first_rule():
  rules = [("llm/.*/attn/.*", "a"), ("llm/.*", "b"), (".*", "c")]
  assert tree.match_first(rules, FLAT) == {
    "img/head/bias": "c",
    "img/head/kernel": "c",
    "llm/layers/attn/w": "a",
    "llm/layers/mlp/w": "b",
    "llm/norm": "b",
  }


def test_match_first_matches_whole_names():
  matched = tree.match_first(
    [("llm/norm", 1), ("llm", 2)], ["llm", "llm/norm"], default=None
  )
  assert matched == {"llm": 2, "llm/norm": 1}
  with pytest.raises(ValueError, match='rule "norm" matches none of 2 names'):
    tree.match_first([("norm", 1)], ["llm", "llm/norm"], default=None)


def test_match_first_default_may_be_none_or_missing():
  assert tree.match_first([], ["x"], default=None) == {"x": None}
  with pytest.raises(ValueError, match=r'no rule matches "x"; add one'):
    tree.match_first([], ["x"])


def test_match_first_names_the_rule_without_a_match():
  message = r'"llm/layers/atn/w" matches none .*mean "llm/layers/attn/w"\?'
  with pytest.raises(ValueError, match=message):
    tree.match_first([("llm/layers/atn/w", 1), (".*", 2)], FLAT)


def test_a_rule_for_everything_may_match_nothing():
  assert tree.match_first([(".*", 1)], []) == {}


def test_a_shadowed_rule_is_no_error():
  assert tree.match_first([(".*", 1), ("x", 2)], ["x"]) == {"x": 1}


def test_malformed_regex():
  with pytest.raises(ValueError, match=r'malformed regex "llm/\(": missing'):
    tree.match_first([("llm/(", 1)], FLAT)


def test_match_any():
  mask = tree.match_any(["img/.*", "llm/norm"], FLAT)
  assert [name for name in FLAT if not mask[name]] == [
    "llm/layers/attn/w",
    "llm/layers/mlp/w",
  ]
  with pytest.raises(ValueError, match="matches none"):
    tree.match_any(["llm/layer/attn/.*"], FLAT)


def test_under_a_prefix():
  flat = {"params/a/b": 1, "params/c": 2, "opt/params/c": 3}
  assert tree.under("params/", flat) == {"a/b": 1, "c": 2}
  assert tree.under("ema/", flat) == {}


def test_partition_then_merge_is_identity():
  mask = tree.match_any(["llm/.*"], FLAT)
  llm, rest = tree.partition(FLAT, mask)
  assert list(llm) == ["llm/layers/attn/w", "llm/layers/mlp/w", "llm/norm"]
  assert list(rest) == ["img/head/bias", "img/head/kernel"]
  assert list(tree.merge(llm, rest).items()) == list(FLAT.items())


def test_partition_needs_a_mask_over_the_same_names():
  with pytest.raises(AssertionError, match="llm/norm"):
    tree.partition(FLAT, {n: True for n in FLAT if n != "llm/norm"})


def test_merge_refuses_duplicates():
  with pytest.raises(ValueError, match='"b" stands in two'):
    tree.merge({"a": 1, "b": 2}, {"b": 2})


def test_compare():
  expected = {"a": (2, 3), "img/kernel": (5,), "same": np.zeros((7,))}
  found = {"a": np.zeros((3, 2)), "img/kernels": (5,), "same": (7,)}
  assert tree.compare(expected, found) == [
    "a: found shape (3, 2), expected (2, 3)",
    "img/kernel: missing, expected (5,)",
    'img/kernels: unexpected, found (5,). Did you mean "img/kernel"?',
  ]
  assert tree.compare(expected, expected) == []


def test_of_a_users_text_so_much_is_shown():
  with pytest.raises(
    ValueError, match=r'^unknown kind "y x+ \.\.\. x+", expec'
  ):
    registry.lookup({"a": 1}, "y\n" + "x" * 999, "kind")
