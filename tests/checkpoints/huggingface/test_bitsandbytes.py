"""nf4 in the layout of bitsandbytes holds what is held here."""

import json

import numpy as np
import pytest

import paligemma
from paligemma import init, quantization
from paligemma.checkpoints import npz, safetensors
from paligemma.checkpoints.huggingface import bitsandbytes
from paligemma.models import paligemma as paligemma_model
from scripts import convert

SIZES = {"width": 128, "depth": 2, "mlp_dim": 192, "num_heads": 2}
LAYER = "language_model.model.layers.1"


def dequantize(tensors, key):
  """By the description in bitsandbytes.py."""
  packed = tensors[key][...]
  codes = np.stack([packed >> 4, packed & 15], axis=-1).reshape(-1, 64)
  state = bytes(tensors[f"{key}.quant_state.bitsandbytes__nf4"][...])
  values = tensors[f"{key}.quant_map"][...][codes]
  found = values * tensors[f"{key}.absmax"][...][:, None]
  return found.reshape(json.loads(state)["shape"])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """A model whose matrices all have blocks of 64, and a row of zeros."""
  llm = {**SIZES, "num_kv_heads": 1, "head_dim": 64, "vocab_size": 1792}
  img = {**SIZES, "num_classes": 128, "mlp_dim": 80}
  model = paligemma_model.make("paligemma_3b", img=img, llm=llm)
  rng = np.random.default_rng(0)
  arrays = {
    name: rng.normal(0, 0.1, x.shape).astype(np.float32)
    for name, x in init.shapes(model, 28).items()
  }
  arrays["llm/layers/mlp/linear"][1, :, 3] = 0
  path = tmp_path_factory.mktemp("source") / "a.npz"
  npz.save(path, arrays)
  return path


@pytest.mark.parametrize(
  ("is_rounded_before", "dtype"), [(False, None), (True, "bfloat16")]
)
def test_the_same_numbers(source, dtype, is_rounded_before, tmp_path):
  _, params = paligemma.load(source, quantize="nf4")
  if is_rounded_before:
    convert.convert(source, tmp_path / "b.npz", quantize="nf4")
    source = tmp_path / "b.npz"
  folder = tmp_path / "hf"
  convert.convert(
    source, folder, format="huggingface", quantize="nf4", dtype=dtype
  )
  tensors = safetensors.open(folder / "model.safetensors")
  layers = params["llm"]["layers"]

  def here(matrix):
    return np.asarray(quantization.dequantize(matrix, np.float32))[1]

  q, kv = (here(layers["attn"][f"{x}_einsum"]["w"]) for x in ("q", "kv"))
  out = here(layers["attn"]["attn_vec_einsum"]["w"])
  gate, up = here(layers["mlp"]["gating_einsum"])
  expected = {
    "self_attn.q_proj": q.transpose(0, 2, 1).reshape(-1, 128),
    "self_attn.v_proj": kv[1].transpose(0, 2, 1).reshape(-1, 128),
    "self_attn.o_proj": out.reshape(-1, 128).T,
    "mlp.gate_proj": gate.T,
    "mlp.up_proj": up.T,
    "mlp.down_proj": here(layers["mlp"]["linear"]).T,
  }
  for name, array in expected.items():
    found = dequantize(tensors, f"{LAYER}.{name}.weight")
    np.testing.assert_array_equal(found, array, err_msg=name)
  config = json.loads((folder / "config.json").read_text())
  settings = config["quantization_config"]
  assert settings["bnb_4bit_compute_dtype"] == (dtype or "float32")
  assert "vision_tower" in settings["llm_int8_skip_modules"]
  card = (folder / "README.md").read_text()
  assert "bitsandbytes" in card and "paligemma.load" not in card
  with pytest.raises(ValueError, match="quantization_config says that weights"):
    paligemma.load(folder)


def test_no_decoder():
  with pytest.raises(ValueError, match="there is no decoder, of which alone a"):
    bitsandbytes.check({"txt/head/kernel": np.zeros((2, 2))}, "nf4")
