"""The folder of a Space of Hugging Face: what it starts, how it is built."""

import pathlib
import runpy
import subprocess
import sys

import huggingface_hub
import pytest
import yaml

from paligemma import __main__ as command
from scripts import serve

SPACE = pathlib.Path(__file__).parents[1] / "space"


@pytest.mark.parametrize("model", [None, "somebody/cats"])
def test_it_serves_a_model_to_all(monkeypatch, model):
  served = []

  def main():
    assert sys.argv.pop(1) == "serve"
    serve.main()

  monkeypatch.setattr(sys, "argv", ["app.py"])
  monkeypatch.setattr(command, "main", main)
  monkeypatch.setattr(serve.processes, "prepare", lambda args: None)
  monkeypatch.setattr(serve, "serve", lambda **args: served.append(args))
  monkeypatch.setattr(
    huggingface_hub, "snapshot_download", lambda name: f"/cache/{name}"
  )
  monkeypatch.delenv("MODEL", raising=False)
  if model:
    monkeypatch.setenv("MODEL", model)
  runpy.run_path(str(SPACE / "app.py"), run_name="__main__")
  (options,) = served
  files = [options[name] for name in ("ckpt", "tokenizer", "codec")]
  if model:
    assert files == ["/cache/somebody/cats"] * 2 + [None]
  else:
    for file in files:
      assert pathlib.Path(file).is_file()
  head = yaml.safe_load((SPACE / "README.md").read_text().split("---")[1])
  assert (head["sdk"], head["app_port"]) == ("docker", options["port"])
  assert options["host"] == "0.0.0.0"
  assert (
    serve.read_token(options["host"], None, None, options["insecure"]) is None
  )
  assert options["frames"] == "https://huggingface.co"


def test_hadolint():
  done = subprocess.run(
    ["hadolint", SPACE / "Dockerfile"], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout
