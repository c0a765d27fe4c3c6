"""What docs/serve.md asks is answered."""

import functools
import json
import subprocess

import numpy as np
import pytest
from PIL import Image

import paligemma
from paligemma.models import mask_codec
from paligemma.serving import engine as engine_lib
from tests import test_docs
from tests.scripts.serving import conftest

DOCUMENT = "docs/serve.md"
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def address(tiny_tokenizer, make_served):
  model, params = paligemma.load(conftest.ASSETS / "tiny_scenes.npz")
  codec = paligemma.load_mask_codec(conftest.ASSETS / "tiny_mask_codec.npz")
  engine = engine_lib.Engine(model, params, tiny_tokenizer, places=2)
  served = make_served(
    engine,
    max_tokens=256,
    decode_masks=functools.partial(mask_codec.decode, codec),
  )
  with conftest.running(served) as server:
    yield server.address


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A folder with the picture that is asked about."""
  path = tmp_path / "data/digits/test/0000.png"
  path.parent.mkdir(parents=True)
  pixels = np.random.default_rng(0).integers(0, 256, (56, 47, 3), np.uint8)
  Image.fromarray(pixels).save(path)
  monkeypatch.chdir(tmp_path)
  return tmp_path


def block(language, address, containing):
  (code,) = (
    code
    for _, written_in, code in test_docs.blocks(test_docs.read(DOCUMENT))
    if written_in == language and containing in code
  )
  assert ADDRESS in code
  return code.replace(ADDRESS, address)


def test_python(folder, address, capsys):
  exec(block("python", address, "openai"), {})
  caption, streamed = capsys.readouterr().out.splitlines()
  length = len(caption)
  assert streamed[:length] == caption
  seen = json.loads(streamed[length:])
  assert seen["digit"] in range(10) and seen["sure"] in (True, False)


def test_bash(folder, address):
  code = block("bash", address, "ask()")
  done = subprocess.run(
    ["bash", "-euc", code], capture_output=True, text=True, timeout=300
  )
  assert not done.stderr
  answers, rest = [], done.stdout
  while rest:
    answer, end = json.JSONDecoder().raw_decode(rest)
    answers.append(answer)
    rest = rest[end:]
  assert [x["prompt"] for x in answers] == [
    "detect digits",
    "segment digits",
    "caption en",
    "answer en what digit is this?",
  ]
  assert all((x["height"], x["width"]) == (56, 47) for x in answers)
