"""The benchmark measures what it says, on a small model."""

import json
import sys

import pytest

import paligemma
from scripts import benchmark

SIZES = ["--variant", "paligemma_tiny", "--res", "28"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
  "format, runs", [("npz", 2), ("huggingface", 1), ("orbax", 1)]
)
def test_load(tmp_path, monkeypatch, capsys, format, runs):
  arguments = ["load", "--folder", str(tmp_path), "--json", *SIZES]
  arguments += ["--format", format, "--runs", str(runs)]
  monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
  benchmark.main()
  result = json.loads(capsys.readouterr().out.splitlines()[-1])
  (path,) = tmp_path.iterdir()
  model, params = paligemma.load(path)
  assert model.llm.dtype == "bfloat16"
  count = sum(x.size for x in benchmark.jax.tree.leaves(params))
  assert result["array_bytes"]["median"] == 2 * count
  if format == "npz":
    assert result["file_bytes"] == path.stat().st_size
  assert result["file_bytes"] > result["array_bytes"]["median"]
  for figure in ("seconds", "peak_bytes"):
    spread = result[figure]
    assert 0 <= spread["min"] <= spread["median"] <= spread["max"]
    assert spread["floor"] > 0


def test_a_tiled_tensor_reads_alike_in_any_part():
  tensor = benchmark.Tiled((7, 5, 3), "float32")
  whole = tensor[0:7]
  assert whole.shape == (7, 5, 3)
  assert len(set(whole[0].ravel())) == 15
  assert (tensor[2:5] == whole[2:5]).all()
