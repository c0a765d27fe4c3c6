"""What adapters are: the scale, the targets, and messages for wrong fields."""

import math
import re

import pytest

from paligemma import parameters
from paligemma.lora import config as lora_config
from paligemma.lora.config import Lora


def test_scale():
  assert Lora(rank=5, alpha=3).scale == 3 / 5
  assert Lora(rank=5, alpha=3, rslora=True).scale == 3 / math.sqrt(5)


def test_the_decoder_is_adapted_unless_told_otherwise():
  adapted = [target for target in lora_config.TARGETS if Lora().adapts(target)]
  assert adapted == [x for x in lora_config.TARGETS if x.startswith("llm/")]
  assert len(adapted) == 7


def test_targets_match_as_a_whole():
  some = Lora(targets=["img/attn/.*", "llm/mlp/up"])
  adapted = {target for target in lora_config.TARGETS if some.adapts(target)}
  assert adapted == {
    "img/attn/q",
    "img/attn/k",
    "img/attn/v",
    "img/attn/out",
    "llm/mlp/up",
  }


def test_lora_can_be_a_field_of_a_model():
  assert hash(Lora(targets=["llm/.*"])) == hash(Lora())


@pytest.mark.parametrize("path", lora_config.TARGETS.values())
def test_names_of_parameters(path):
  for name in (f"{path}/a", f"{path.removeprefix('llm/')}/b"):
    assert re.fullmatch(parameters.ADAPTERS, name)
  for name in (path, f"{path}/c", f"{path}/a/x", "llm/layers/a", "lora_q"):
    assert not re.fullmatch(parameters.ADAPTERS, name)


@pytest.mark.parametrize("rank", [0, -1, 2.0, True, "8", None])
def test_bad_rank(rank):
  message = rf"^LoRA rank is {rank!r}, expected a positive int$"
  with pytest.raises(ValueError, match=message):
    Lora(rank=rank)


@pytest.mark.parametrize("alpha", [0, -1.0, True, "16", None, math.inf])
def test_bad_alpha(alpha):
  message = rf"^LoRA alpha is {alpha!r}, expected a positive number$"
  with pytest.raises(ValueError, match=message):
    Lora(alpha=alpha)


def test_bad_rslora():
  with pytest.raises(ValueError, match=r"^LoRA rslora is 1, expected a bool$"):
    Lora(rslora=1)


@pytest.mark.parametrize("dropout", [-0.1, 1, 1.0, math.nan, "0.1", None])
def test_bad_dropout(dropout):
  message = rf"^LoRA dropout is {dropout!r}, expected a number in \[0, 1\)$"
  with pytest.raises(ValueError, match=message):
    Lora(dropout=dropout)


@pytest.mark.parametrize("targets", [(), "llm/.*", None, ["llm/.*", 3]])
def test_targets_that_are_no_list(targets):
  with pytest.raises(ValueError, match=r"^LoRA targets are .*list of regexes"):
    Lora(targets=targets)


def test_unknown_target():
  with pytest.raises(
    ValueError,
    match=r'^LoRA target "llm/atn/q" matches none of: llm/attn/q, .*txt/head '
    r'\(a regex must match the whole name\)\. Did you mean "llm/attn/q"\?$',
  ):
    Lora(targets=["llm/.*", "llm/atn/q"])


def test_malformed_target():
  with pytest.raises(ValueError, match=r'LoRA target "llm/\(": malformed'):
    Lora(targets=["llm/("])
