"""Writes preprocessing.npz: images and texts as others give them to the model.

Run by hand, never by the tests, in an environment of its own:

    pip install transformers==5.23.0 torch==2.13.0 tensorflow==2.21.0 \
      sentencepiece pillow==13.0.0
    python tests/goldens/preprocessing/make_preprocessing.py

Images: transformers' processor (through Pillow, see `processor`), and the
operations that big_vision asks TensorFlow for, with and without its truncation
to uint8. They shrink at least as much in width as in height, so that every
version of Pillow gives the same.

Texts: transformers' processor with this repository's tiny tokenizer, all in one
batch padded on the left.
"""

import json
import pathlib
import shutil
import tempfile

import numpy as np
import transformers
from PIL import Image

FOLDER = pathlib.Path(__file__).parent
TOKENIZER = FOLDER.parents[2] / "paligemma" / "assets" / "tiny_tokenizer.model"
IMAGE_TOKENS = 3
# (H, W) -> (height, width): down, down and up, up, narrow.
SIZES = [
  ((41, 59), (23, 19)),
  ((29, 53), (31, 37)),
  ((11, 13), (43, 47)),
  ((17, 101), (5, 7)),
]
TEXTS = [  # prefix, suffix
  ("what digit is this", "seven"),
  ("", ""),
  (" detect a  red circle ; B ", "<loc0012><loc0345><loc0678><loc1023> red"),
  ("Answer EN: 1024 + 37?", " 1,061 "),
  ("segment ä 日本語 😀\tx", "<seg000><seg127>\u00a0ﬁ <loc12> <seg>"),
  ("two\nlines \n here", "a\n\nb\n"),
]


def processor(folder, size, tokenizer=TOKENIZER):
  """transformers' processor of PaliGemma as it is loaded from a directory.

  Args:
    folder: An empty one to write its files to.
    size: (height, width) of the image.
    tokenizer: A SentencePiece model.
  """
  folder = pathlib.Path(folder)
  shutil.copy(tokenizer, folder / "tokenizer.model")
  files = {
    "config": {"model_type": "paligemma"},
    "tokenizer_config": {"tokenizer_class": "GemmaTokenizer"},
    "preprocessor_config": {
      "image_processor_type": "SiglipImageProcessor",
      "processor_class": "PaliGemmaProcessor",
      "image_seq_length": IMAGE_TOKENS,
      "size": {"height": size[0], "width": size[1]},
    },
  }
  for name, content in files.items():
    (folder / f"{name}.json").write_text(json.dumps(content))
  return transformers.AutoProcessor.from_pretrained(folder, backend="pil")


def pictures():
  """uint8[H, W, 3] of each size: noise, which overshoots, over a gradient."""
  rng = np.random.default_rng(0)
  for (height, width), _ in SIZES:
    y, x = np.mgrid[:height, :width][..., None]
    smooth = 255 * (y / height * [1, 0, 0.5] + x / width * [0, 1, 0.5])
    noise = rng.choice([0, 30, 255], (height, width, 3), p=[0.1, 0.8, 0.1])
    yield np.where(noise == 30, smooth, noise).astype(np.uint8)


def reference(picture, size):
  """Values in [-1, 1], and big_vision's uint8 image."""
  import tensorflow as tf

  resized = tf.image.resize(picture, size, method="bilinear", antialias=True)
  truncated = tf.cast(tf.clip_by_value(resized, 0, 255), tf.uint8)
  return resized.numpy() / 127.5 - 1, truncated.numpy()


def main():
  arrays = {"texts": json.dumps(TEXTS), "image_tokens": IMAGE_TOKENS}
  for i, picture in enumerate(pictures()):
    size = SIZES[i][1]
    with tempfile.TemporaryDirectory() as folder:
      theirs = processor(folder, size).image_processor
    pixels = theirs(Image.fromarray(picture), return_tensors="np")
    arrays[f"{i}/picture"] = picture
    arrays[f"{i}/hf"] = pixels["pixel_values"][0].transpose(1, 2, 0)
    arrays[f"{i}/reference"], arrays[f"{i}/big_vision"] = reference(
      picture, size
    )
  prefixes, suffixes = zip(*TEXTS, strict=True)
  with tempfile.TemporaryDirectory() as folder:
    batch = processor(folder, (2, 2))(
      images=[Image.new("RGB", (2, 2))] * len(TEXTS),
      text=[f"<image>{prefix}" for prefix in prefixes],
      suffix=list(suffixes),
      padding="longest",
      return_tensors="np",
    )
  for key in ("input_ids", "attention_mask", "token_type_ids", "labels"):
    arrays[key] = batch[key].astype(np.int32)
  np.savez_compressed(FOLDER / "preprocessing.npz", **arrays)


if __name__ == "__main__":
  main()
