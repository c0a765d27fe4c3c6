"""Writes small presets with keras-hub, and what keras-hub computes with them.

    KERAS_BACKEND=torch python -m tests.goldens.keras_hub.make_presets

needs keras-hub alone. Each zip holds the files of a preset just as keras-hub
saved them, and expected.npz: inputs, and logits in float32.

- paligemma2: one file; grouped attention, post norms, both soft caps, an image
  tower with 3 heads; a window that is as long as image and prompt, and shorter
  than the whole.
- gemma: bfloat16 in several files, multi-query attention, text alone.
"""

import pathlib
import tempfile
import zipfile

import keras
import keras_hub
import numpy as np

from tests.parity import keras_hub_models

FOLDER = pathlib.Path(__file__).parent
PROMPT = 4


def main():
  paligemma2 = {
    "num_layers": 2,
    "num_query_heads": 4,
    "num_key_value_heads": 2,
    "hidden_dim": 20,
    "head_dim": 6,
    "intermediate_dim": 2 * 11,
    "vocabulary_size": 37,
    "attention_logit_soft_cap": 2.0,
    "final_logit_soft_cap": 3.0,
    "sliding_window_size": 4 + PROMPT,
    "image_size": 6,
    "vit_patch_size": 3,
    "vit_num_heads": 3,
    "vit_hidden_dim": 15,
    "vit_num_layers": 2,
    "vit_intermediate_dim": 13,
  }
  gemma = {
    "num_layers": 3,
    "num_query_heads": 2,
    "num_key_value_heads": 1,
    "hidden_dim": 14,
    "head_dim": 6,
    "intermediate_dim": 2 * 11,
    "vocabulary_size": 37,
    "dtype": "bfloat16",
  }
  write("paligemma2", keras_hub_models.random_paligemma, "gemma2", paligemma2)
  write("gemma", keras_hub_models.random_gemma, "gemma1", gemma, shard=5e-6)


def write(name, random_preset, style, fields, shard=10):
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    random_preset(folder, style, max_shard_size=shard, **fields)
    files = sorted(folder.iterdir())
    backbone = keras_hub.models.Backbone.from_preset(
      str(folder), dtype="float32"
    )
    np.savez(folder / "expected.npz", **expected(backbone))
    with zipfile.ZipFile(
      FOLDER / f"{name}.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9
    ) as archive:
      for file in [*files, folder / "expected.npz"]:
        archive.write(file, file.name)


def expected(backbone):
  rng = np.random.default_rng(0)
  position = np.arange(9)
  length, prompt = np.array([[9], [7]]), np.array([[PROMPT], [3]])
  text = rng.integers(0, backbone.vocabulary_size, (2, 9)).astype(np.int32)
  arrays = {
    "text": text,
    "input_mask": position < length,
    "mask_ar": np.ones_like(text),
  }
  inputs = {
    "token_ids": text,
    "padding_mask": arrays["input_mask"].astype(np.int32),
  }
  if hasattr(backbone, "image_size"):
    res = backbone.image_size
    arrays["image"] = rng.uniform(-1, 1, (2, res, res, 3)).astype(np.float32)
    arrays["mask_ar"] = (position >= prompt).astype(np.int32)
    inputs["images"] = arrays["image"]
    inputs["response_mask"] = arrays["mask_ar"] * arrays["input_mask"]
  logits = backbone.token_embedding(backbone(inputs), reverse=True)
  logits = keras.ops.convert_to_numpy(logits)[:, -text.shape[1] :]
  return {**arrays, "logits": logits}


if __name__ == "__main__":
  main()
