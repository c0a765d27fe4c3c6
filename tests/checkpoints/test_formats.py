"""What a path is taken for, and what is said of one that holds no model."""

import numpy as np
import pytest

import paligemma
from paligemma.checkpoints import formats, npz
from paligemma.checkpoints.lora import files as lora_files
from paligemma.checkpoints.lora import peft
from paligemma.lora.config import Lora

ARRAYS = {
  f"llm/layers/attn/lora_q/{x}": np.ones(shape, np.float32)
  for x, shape in (("a", (1, 7, 3)), ("b", (1, 3, 9)))
}
LORA = Lora(rank=3, targets=["llm/attn/q"])


def refused(match):
  return pytest.raises(ValueError, match=match)


def test_an_adapter_names_the_way(tmp_path):
  peft.save(tmp_path / "of_peft", ARRAYS, LORA, towers=("llm",))
  lora_files.save(tmp_path / "ours.safetensors", ARRAYS, LORA, {})
  for name in ("of_peft", "ours.safetensors"):
    message = rf"^{tmp_path}/{name}: is an adapter; load the model .*load_adapt"
    with refused(message):
      paligemma.load(tmp_path / name)


def test_an_adapter_beside_a_model_is_let_be(tmp_path):
  peft.save(tmp_path / "a", ARRAYS, LORA, towers=("llm",))
  (tmp_path / "a/config.json").write_text("{}")
  assert formats.detect(tmp_path / "a") == "Hugging Face"


def test_what_lies_one_folder_below_is_named(tmp_path):
  peft.save(tmp_path / "x/mine", ARRAYS, LORA, towers=("llm",))
  with refused(rf'^{tmp_path}/x: no checkpoint, but "mine" in it$'):
    paligemma.load(tmp_path / "x")
  (tmp_path / "x/other").mkdir()
  npz.save(tmp_path / "x/other/checkpoints.npz", {"a": np.ones(3)})
  (tmp_path / "x/run").mkdir()
  (tmp_path / "x/run/model.safetensors").write_bytes(b"")
  with refused(rf'^{tmp_path}/x: no checkpoint, but "mine" and "run" in it$'):
    paligemma.load(tmp_path / "x")
