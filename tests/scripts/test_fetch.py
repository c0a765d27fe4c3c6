"""A published checkpoint and its tokenizer, from hubs that are made up here."""

import hashlib
import io
import pathlib
import shutil
import sys
import types
import urllib.error
import urllib.request

import numpy as np
import pytest

from paligemma.checkpoints import npz, presets
from scripts import fetch

TINY = pathlib.Path(__file__).parents[2] / "paligemma/assets/tiny.npz"
TOKENIZER = b"pieces"
HANDLE = "google/paligemma/jax/paligemma-tiny-56/1"


@pytest.fixture(autouse=True)
def hubs(tmp_path, monkeypatch):
  """Kaggle has tiny.npz as the preset "tiny"; nobody else has anything."""
  weights = tmp_path / "cache/tiny.npz"
  weights.parent.mkdir()
  shutil.copy(TINY, weights)

  def model_download(handle, file):
    assert (handle, file) == (HANDLE, "tiny.npz")
    return weights

  source = presets.Source("Kaggle", HANDLE, ("tiny.npz",))
  tiny = presets.Preset("paligemma_tiny", 56, 1792, (source,))
  kaggle = types.SimpleNamespace(model_download=model_download)
  monkeypatch.setattr(presets, "PRESETS", {"tiny": tiny})
  monkeypatch.delenv(presets.DIRECTORY_VARIABLE, raising=False)
  monkeypatch.setitem(sys.modules, "kagglehub", kaggle)
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  digest = hashlib.sha256(TOKENIZER).hexdigest()
  monkeypatch.setattr(presets, "TOKENIZER_SHA256", digest)
  monkeypatch.setattr(presets, "TOKENIZER_BYTES", len(TOKENIZER))
  web = types.SimpleNamespace(data=TOKENIZER, asked=[])

  def urlopen(url, timeout):
    web.asked.append(url)
    if isinstance(web.data, Exception):
      raise web.data
    return io.BytesIO(web.data)

  monkeypatch.setattr(urllib.request, "urlopen", urlopen)
  return types.SimpleNamespace(
    weights=weights, web=web, kaggle=kaggle, tokenizer=tmp_path / "a/t.model"
  )


def test_weights_and_tokenizer(hubs, monkeypatch, capsys):
  arguments = ["fetch", "tiny", f"--tokenizer={hubs.tokenizer}"]
  monkeypatch.setattr(sys, "argv", arguments)
  for _ in range(2):
    fetch.main()
    assert capsys.readouterr().out == (
      f"weights: {hubs.weights}, 2,068,096 parameters\n"
      f"tokenizer: {hubs.tokenizer}\n"
      f"config: init=tiny,tokenizer={hubs.tokenizer}\n"
    )
  assert hubs.tokenizer.read_bytes() == TOKENIZER
  assert hubs.web.asked == [presets.TOKENIZER_URL]


@pytest.mark.parametrize("data", [TOKENIZER[:-1], TOKENIZER + b"!", b"Pieces"])
def test_another_tokenizer_is_refused(hubs, data):
  hubs.web.data = data
  with pytest.raises(
    ValueError, match=r"tokenizer.model: [567] bytes with sha"
  ):
    fetch.fetch("tiny", hubs.tokenizer)
  assert not hubs.tokenizer.exists()
  hubs.tokenizer.parent.mkdir()
  hubs.tokenizer.write_bytes(data)
  with pytest.raises(ValueError, match=rf"^{hubs.tokenizer}: [567] bytes with"):
    fetch.fetch("tiny", hubs.tokenizer)
  assert hubs.tokenizer.read_bytes() == data


def test_no_network(hubs):
  hubs.web.data = urllib.error.URLError("no route")
  with pytest.raises(ValueError) as error:
    fetch.fetch("tiny", hubs.tokenizer)
  assert str(error.value) == (
    f"{presets.TOKENIZER_URL}: no route; it is also tokenizer.model at "
    "https://huggingface.co/google/paligemma-3b-pt-224, save it as "
    f"{hubs.tokenizer}"
  )


@pytest.mark.parametrize(
  ("status", "reason"),
  [
    (401, "401, no valid key of an account, or its licence is not accepted"),
    (
      403,
      "403, the licence is not accepted by the account, or its key may not",
    ),
    (404, "Not here. Really"),
  ],
)
def test_what_is_missing(hubs, status, reason):
  def model_download(*_):
    error = OSError("Not here.\nReally")
    error.response = types.SimpleNamespace(status_code=status)
    raise error

  hubs.kaggle.model_download = model_download
  with pytest.raises(ValueError, match=f"Kaggle, {HANDLE}: {reason}") as error:
    fetch.fetch("tiny", hubs.tokenizer)
  message = str(error.value)
  assert "\n" not in message
  page = "https://www.kaggle.com/models/google/paligemma"
  assert f"Get it at {page}: sign in, accept the licence there" in message


def test_a_damaged_array_is_found(hubs):
  data = bytearray(hubs.weights.read_bytes())
  data[len(data) // 2] ^= 1
  hubs.weights.write_bytes(data)
  with pytest.raises(ValueError, match=r"tiny.npz: params/.*npy is damaged; "):
    fetch.fetch("tiny", hubs.tokenizer)


def test_another_model_is_found(hubs):
  flat = npz.load(TINY)
  positions = np.zeros((1, 9, 128), np.float32)
  npz.save(hubs.weights, {**flat, "img/pos_embedding": positions})
  message = "tiny.npz: is for images of 42 pixels, expected 56$"
  with pytest.raises(ValueError, match=message):
    fetch.fetch("tiny", hubs.tokenizer)
  del flat["img/head/bias"]
  npz.save(hubs.weights, flat)
  with pytest.raises(ValueError, match="does not fit the model, 1 leaves diff"):
    fetch.fetch("tiny", hubs.tokenizer)
