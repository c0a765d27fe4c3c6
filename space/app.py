"""Serves the page of a model in a Space of Hugging Face."""

import os
import sys

from huggingface_hub import snapshot_download

from paligemma import __main__ as command

if model := os.environ.get("MODEL"):
  folder = snapshot_download(model)
  files = ["--ckpt", folder, "--tokenizer", folder]
else:
  names = {"ckpt": "scenes.npz", "tokenizer": "tokenizer.model"}
  names["codec"] = "mask_codec.npz"
  files = [f"--{x}=paligemma/assets/tiny_{names[x]}" for x in names]
sys.argv = [
  *("paligemma", "serve", "--host=0.0.0.0", "--port=7860", "--insecure"),
  *("--name=paligemma", "--frames=https://huggingface.co", *files),
]
command.main()
