"""What quantizing loses is counted right, on a model that has much to lose."""

import json
import sys

import jax
import pytest

import paligemma
from paligemma.checkpoints import npz
from scripts import compare_quantized as command


def test_places_are_compared_to_the_end_of_the_longer():
  expected = [[5, 6, 1], [7, 1], [1], [2, 3, 4]]
  found = [[5, 6, 1], [7, 8, 9, 1], [8, 1], [3, 2, 4]]
  assert command.agreement(expected, found) == {
    "same_tokens": (3 + 1 + 0 + 1) / (3 + 4 + 2 + 3),
    "same_answers": 1 / 4,
  }


@pytest.fixture(scope="module")
def found(tiny):
  return command.compare(
    tiny.weights,
    tiny.tokenizer,
    tiny.data,
    kinds=("int8", "nf4"),
    limit=7,
    batch_size=4,
    text_len=29,
    max_decode_len=5,
  )


def test_fewer_bits_lose_more(found):
  full, int8, nf4 = found["full"], found["int8"], found["nf4"]
  assert full["bytes"] > int8["bytes"] > nf4["bytes"]
  assert 0 < int8["mean_error"] < nf4["mean_error"]
  assert int8["mean_error"] < int8["max_error"] < nf4["max_error"]
  gaps = [abs(x["perplexity"] / full["perplexity"] - 1) for x in (int8, nf4)]
  assert 0 < gaps[0] < gaps[1]
  assert nf4["same_tokens"] <= int8["same_tokens"] <= 1
  assert full["exact_match"] == 0  # weights are random


def test_a_bad_model_answers_otherwise(tiny, tmp_path, monkeypatch):
  """Agreement is not counted of a model with itself."""
  load = paligemma.io.load

  def broken(path, dtype, **options):
    model, params = load(path, dtype, **options)
    if options:
      params = jax.tree.map(lambda x: x[..., ::-1], params)
    return model, params

  monkeypatch.setattr(paligemma.io, "load", broken)
  found = command.compare(
    tiny.weights,
    tiny.tokenizer,
    tiny.data,
    kinds=("int8",),
    limit=4,
    batch_size=4,
    text_len=29,
    max_decode_len=5,
  )
  assert found["int8"]["same_tokens"] < 0.5
  assert found["int8"]["max_error"] > 1


def test_prints_a_table(found):
  header, full, int8, nf4 = command.describe(found).splitlines()
  assert header.split()[:2] == ["kind", "bytes"]
  assert full.split()[0] == "full" and full.split()[5] == "100.00%"
  assert int8.split()[1] == f"{found['int8']['bytes']:,}"
  assert nf4.split()[3] == f"{found['nf4']['mean_error']:.4f}"


def test_command(tiny, monkeypatch, capsys):
  seen = {}

  def compare(**options):
    seen.update(options)
    return {"full": {"bytes": 3}}

  monkeypatch.setattr(command, "compare", compare)
  arguments = [tiny.weights, "--tokenizer", tiny.tokenizer, "--data", tiny.data]
  arguments += ["--kinds", "int8,nf4", "--limit", 3, "--json"]
  monkeypatch.setattr(sys, "argv", ["compare", *map(str, arguments)])
  command.main()
  assert json.loads(capsys.readouterr().out) == {"full": {"bytes": 3}}
  assert seen["kinds"] == ["int8", "nf4"] and seen["limit"] == 3
  given = seen["ckpt"], seen["tokenizer"], seen["data"]
  assert given == tuple(map(str, (tiny.weights, tiny.tokenizer, tiny.data)))


def test_errors(tiny, tmp_path):
  where = (tiny.tokenizer, tiny.data)
  with pytest.raises(
    ValueError, match=r'unknown quantization "int3".*expected'
  ):
    command.compare(tiny.weights, *where, kinds=("int3",))
  model, params = paligemma.load(tiny.weights, quantize="int8")
  paligemma.save(tmp_path / "a.npz", model, params)
  with pytest.raises(ValueError, match=r"a\.npz: is quantized, expected full"):
    command.compare(tmp_path / "a.npz", *where)
  flat = {n: x for n, x in npz.load(tiny.weights).items() if n[:3] == "llm"}
  npz.save(tmp_path / "b.npz", flat)
  with pytest.raises(ValueError, match=r"b\.npz: holds llm, expected a whole"):
    command.compare(tmp_path / "b.npz", *where)
