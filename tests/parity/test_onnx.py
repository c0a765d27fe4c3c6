"""ONNX in onnxruntime computes what the model computes here."""

import contextlib
import io
import re

import jax
import numpy as np
import pytest

import paligemma
from paligemma.data import image
from scripts import export
from scripts.exports import programs

pytest.importorskip("jax2onnx")
onnxruntime = pytest.importorskip("onnxruntime")

TINY = "paligemma/assets/tiny.npz"
TOKENIZER = "paligemma/assets/tiny_tokenizer.model"
SIZES = {"batch_size": 2, "text_len": 8, "max_decode_len": 5}
BOUND = 1e-4


# Of jax2onnx itself, and of how onnxruntime is found.
@pytest.mark.filterwarnings("ignore")
def test_onnx(tmp_path, monkeypatch):
  folder = tmp_path / "onnx"
  export.export(
    TINY, TOKENIZER, folder, format="onnx", dtype="float32", **SIZES
  )
  model, params = paligemma.load(TINY, "float32", llm={"scan": False})
  tok = paligemma.Tokenizer(TOKENIZER)
  made = programs.make(model, params, tok, **SIZES)
  pixels = np.random.default_rng(0).integers(0, 256, (2, 56, 56, 3), np.uint8)
  text = np.zeros((2, 8), np.int32)
  text[0, :3], text[1, :5] = [2, 50, 108], [2, 60, 70, 80, 108]
  inputs = {"text": text, "image": image.to_model_range(pixels)}
  logits, cache = jax.jit(made.prefill)(made.params, inputs)
  sessions = [
    onnxruntime.InferenceSession(folder / f"{name}.onnx")
    for name in ("prefill", "step")
  ]
  found, *values = sessions[0].run(None, inputs)
  np.testing.assert_allclose(found, logits, atol=BOUND, rtol=0)
  token = np.array([7, 9], np.int32)
  logits, _ = jax.jit(made.step)(made.params, token, cache)
  given = dict(zip(cache, values, strict=True), token=token)
  found, *_ = sessions[1].run(None, given)
  np.testing.assert_allclose(found, logits, atol=BOUND, rtol=0)
  # What the model card says to do.
  monkeypatch.chdir(folder)
  np.save("image.npy", inputs["image"])
  (code,) = re.findall(
    r"^```python\n(.*?)^```$", (folder / "README.md").read_text(), re.M | re.S
  )
  with contextlib.redirect_stdout(io.StringIO()) as printed:
    exec(compile(code, "README.md", "exec"), {})
  (expected,) = paligemma.generate(
    model, params, tok, pixels[0], "caption en", max_decode_len=5
  )
  assert printed.getvalue() == f"{expected}\n"
