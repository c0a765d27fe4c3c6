"""Answers with the exported programs beside this file, without paligemma.

    python run.py "caption en" photo.jpg [photo.jpg ...]

Needs jax, flatbuffers, numpy, Pillow and sentencepiece; see manifest.json.
"""

import json
import pathlib
import sys

import jax.export
import numpy as np
import sentencepiece
from PIL import Image, ImageOps

HERE = pathlib.Path(__file__).parent
ABOUT = json.loads((HERE / "manifest.json").read_text())


def load() -> tuple:
  """Returns weights by name, both programs for this device, the tokenizer."""
  data = np.memmap(HERE / "weights.safetensors", np.uint8, "r")
  start = 8 + int(data[:8].view(np.int64)[0])  # behind the header
  header, params = json.loads(data[8:start].tobytes()), {}
  for name, dtype in ABOUT["parameters"].items():
    first, last = header[name]["data_offsets"]
    array = data[start + first : start + last].view(dtype)
    params[name] = jax.device_put(array.reshape(header[name]["shape"]))
  files = (HERE / "prefill.bin", HERE / "step.bin")
  prefill, step = (jax.export.deserialize(x.read_bytes()).call for x in files)
  tok = sentencepiece.SentencePieceProcessor(str(HERE / "tokenizer.model"))
  # The cache, argument 2 of the step, is overwritten.
  return params, jax.jit(prefill), jax.jit(step, donate_argnums=2), tok


def pixels(path: str) -> np.ndarray:
  """Returns float32[side, side, 3] in [-1, 1]."""
  how, image = ABOUT["image"], ImageOps.exif_transpose(Image.open(path))
  white = Image.new("RGBA", image.size, "white")
  image = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
  side = how["side"], how["side"]
  if how["method"] == "pillow_bicubic":
    image = np.asarray(image.resize(side, Image.Resampling.BICUBIC))
  else:
    image, options = np.asarray(image, np.float32), how["options"]
    image = np.asarray(jax.image.resize(image, (*side, 3), **options))
    if how["method"] == "truncated":
      image = np.clip(image + 1e-4, 0, 255).astype(np.uint8)
  return image * np.float32(2 / 255) - np.float32(1)


def answer(loaded: tuple, prompt: str, paths: list[str]) -> list[str]:
  """Answers a prompt about each of at most batch_size pictures, greedily."""
  params, prefill, step, tok = loaded
  ids = [tok.bos_id(), *tok.encode(prompt), *tok.encode(ABOUT["prompt_end"])]
  text = np.zeros((ABOUT["batch_size"], ABOUT["text_len"]), np.int32)
  text[:, : len(ids)] = ids  # an error if the prompt is too long
  inputs = {"text": text}
  if ABOUT["image"]:
    images = [pixels(path) for path in paths]
    inputs["image"] = np.stack(images + images[-1:] * (len(text) - len(images)))
  logits, cache = prefill(params, inputs)
  tokens = [np.argmax(logits, axis=-1).astype(np.int32)]
  while len(tokens) < ABOUT["max_decode_len"]:
    if (np.stack(tokens) == tok.eos_id()).any(axis=0).all():
      break
    logits, cache = step(params, tokens[-1], cache)
    tokens.append(np.argmax(logits, axis=-1).astype(np.int32))
  rows = [[*row, tok.eos_id()] for row in np.stack(tokens, axis=1).tolist()]
  return [tok.decode(row[: row.index(tok.eos_id())]) for row in rows]


if __name__ == "__main__":
  (_, prompt, *paths), size = sys.argv, ABOUT["batch_size"]
  loaded = load()
  for i in range(0, max(len(paths), 1), size):
    group = paths[i : i + size]
    print("\n".join(answer(loaded, prompt, group)[: max(len(group), 1)]))
