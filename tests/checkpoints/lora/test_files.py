"""The file of adapters: itself again, and messages for what is no such file."""

import json

import numpy as np
import pytest

from paligemma.checkpoints import safetensors
from paligemma.checkpoints.lora import files as lora_files
from paligemma.checkpoints.lora import peft
from paligemma.lora.config import Lora

LORA = Lora(rank=3, alpha=0.5, rslora=True, dropout=0.1, targets=["img/.*"])
DEPTHS = {"img": 1, "llm": 1}
SIZES = {"img": {"width": 7}, "llm": {"width": 11}}
ARRAYS = {
  "img/head/lora_head/a": np.float32(np.arange(21).reshape(7, 3)),
  "img/head/lora_head/b": np.float32(np.arange(33).reshape(3, 11)),
}


@pytest.fixture
def path(tmp_path):
  path = tmp_path / "new" / "a.safetensors"
  lora_files.save(path, ARRAYS, LORA, SIZES)
  return path


def test_itself_again(path):
  found = lora_files.open(path, depths=DEPTHS)
  assert found.lora == LORA
  assert found.sizes == SIZES
  assert found.leaves.keys() == ARRAYS.keys()
  for name, array in ARRAYS.items():
    np.testing.assert_array_equal(found.leaves[name].read(), array)
  assert [x.name for x in path.parent.iterdir()] == [path.name]


def test_written_over(path):
  lora_files.save(path, ARRAYS, Lora(rank=3, targets=["img/head"]), SIZES)
  assert lora_files.open(path, depths=DEPTHS).lora.targets == ("img/head",)


def refused(match):
  return pytest.raises(ValueError, match=match)


def test_of_other_storage():
  with refused(r"^gs://x/a: expected adapters in the local file system$"):
    lora_files.open("gs://x/a", depths=DEPTHS)


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_cut_short(path, size):
  path.write_bytes(path.read_bytes()[:size])
  with refused(rf"^{path}: .*cut\b"):
    lora_files.open(path, depths=DEPTHS)


def test_every_cut_is_found(path):
  whole = path.read_bytes()
  for size in range(len(whole)):
    path.write_bytes(whole[:size])
    with refused(f"^{path}: "):
      lora_files.open(path, depths=DEPTHS)


def test_other_files(path):
  safetensors.save(path, ARRAYS)
  with refused(r"a\.safetensors: is no adapter of paligemma; expected a file"):
    lora_files.open(path, depths=DEPTHS)
  safetensors.save(path, ARRAYS, {"format": "pt"})
  with refused(r"is no adapter of paligemma; .*peft with adapter_config\.json"):
    lora_files.open(path, depths=DEPTHS)
  path.write_text("not a file of tensors")
  with refused(r"a\.safetensors: not a safetensors file"):
    lora_files.open(path, depths=DEPTHS)


def save_with(path, **metadata):
  lora = {"rank": 3, "alpha": 1, "rslora": False, "dropout": 0}
  whole = {
    "format": "paligemma adapter",
    "version": "1",
    "lora": json.dumps(lora | {"targets": ["img/head"]}),
    "model": "{}",
    **metadata,
  }
  safetensors.save(path, ARRAYS, {k: v for k, v in whole.items() if v})


@pytest.mark.parametrize(
  ("metadata", "message"),
  [
    ({"version": "2"}, "version '2' of adapter files, expected '1'"),
    ({"version": None}, "version None of adapter files"),
    ({"lora": None}, "lora in the metadata is no JSON object"),
    ({"lora": "[1]"}, "lora in the metadata is no JSON object"),
    ({"model": "{"}, "model in the metadata is no JSON object"),
    ({"lora": "{}"}, r"lora has the fields \[\], expected \['alpha', 'dropo"),
    (
      {"lora": json.dumps(dict(vars(LORA), rank=0))},
      "LoRA rank is 0, expected a positive int",
    ),
    (
      {"lora": json.dumps(dict(vars(LORA), more=0))},
      r"lora has the fields .*'more'.*, expected",
    ),
  ],
)
def test_bad_metadata(path, metadata, message):
  save_with(path)
  assert lora_files.open(path, depths=DEPTHS).lora.rank == 3
  save_with(path, **metadata)
  with refused(f"^{path}: {message}"):
    lora_files.open(path, depths=DEPTHS)


def test_a_folder_that_is_none_of_peft(tmp_path):
  with refused(rf"^{tmp_path}/adapter_config\.json: No such file"):
    lora_files.open(tmp_path, depths=DEPTHS)


def test_the_adapter_in_a_folder(tmp_path):
  arrays = {
    f"llm/layers/attn/lora_q/{x}": np.ones(shape, np.float32)
    for x, shape in (("a", (1, 7, 3)), ("b", (1, 3, 9)))
  }
  lora = Lora(rank=3, targets=["llm/attn/q"])
  peft.save(tmp_path / "x/mine", arrays, lora, towers=("llm",))
  found = lora_files.open(tmp_path / "x", depths={"llm": 1})
  assert found.lora.targets == ("llm/attn/q",)
  peft.save(tmp_path / "x/yours", arrays, lora, towers=("llm",))
  message = rf"^{tmp_path}/x: holds 2 adapters, name .*: mine, yours$"
  with refused(message):
    lora_files.open(tmp_path / "x", depths={"llm": 1})


def test_the_adapter_of_a_run(tmp_path):
  lora_files.save(
    tmp_path / "run/adapter.safetensors", ARRAYS, LORA, SIZES, "int4"
  )
  found = lora_files.open(tmp_path / "run", depths=DEPTHS)
  assert (found.lora, found.base) == (LORA, "int4")
