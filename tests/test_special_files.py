"""What might be read for ever is refused before it is read."""

import json
import os
import socket

import pytest

from paligemma import disk
from paligemma.checkpoints import formats
from paligemma.data import sources, tokenizer
from paligemma.evals import predictions


def test_files_folders_and_nothing_pass(tmp_path):
  (tmp_path / "file").touch()
  (tmp_path / "link").symlink_to(tmp_path / "file")
  for name in ("file", "link", ".", "none"):
    assert disk.path(tmp_path / name) == tmp_path / name
  disk.path("gs://bucket/file")


@pytest.fixture(params=["device", "pipe", "socket"])
def special(tmp_path, request):
  path = tmp_path / "special.jsonl"
  if request.param == "device":
    path.symlink_to("/dev/zero")
    yield path
  elif request.param == "pipe":
    os.mkfifo(path)
    yield path
  else:
    with socket.socket(socket.AF_UNIX) as bound:
      bound.bind(str(path))
      yield path


# Whatever reads a file that a user names.
READERS = {
  "data": sources.Jsonl,
  "tokenizer": tokenizer.Tokenizer,
  "predictions": lambda path: predictions.read(path, 3),
}
# And a checkpoint, by the name of the file in it.
CHECKPOINTS = ("x.npz", "a/config.json", "x.safetensors", "a/model.safetensors")


@pytest.mark.parametrize("name", READERS)
def test_a_special_file_is_refused(special, name):
  with pytest.raises(ValueError, match=r"special.jsonl.*a device, a pipe"):
    READERS[name](special)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_special_file_is_no_checkpoint(special, tmp_path, name):
  path = tmp_path / name
  path.parent.mkdir(exist_ok=True)
  if name == "a/model.safetensors":
    config = {"model_type": "paligemma", "architectures": ["PaliGemma"]}
    (tmp_path / "a/config.json").write_text(json.dumps(config))
  path.symlink_to(special)
  with pytest.raises(ValueError) as caught:
    formats.open(path if path.parent == tmp_path else path.parent)
  assert "\n" not in str(caught.value)


def test_a_special_image_is_named_with_its_line(special, tmp_path):
  data = tmp_path / "x.jsonl"
  data.write_text('{"image": "special.jsonl"}\n')
  message = r"x.jsonl:1: cannot read image .*special.jsonl: a device, a pipe"
  with pytest.raises(ValueError, match=message):
    sources.Jsonl(data)[0]


@pytest.mark.parametrize("name", READERS)
def test_an_address_is_no_path(name):
  address = "https://example.com/train.jsonl"
  with pytest.raises(ValueError, match=f"{address}.* an address, "):
    READERS[name](address)


def test_an_address_is_no_checkpoint():
  with pytest.raises(ValueError, match="an address, expected a"):
    formats.open("https://example.com/model.npz")
