"""Boxes, scores and masks as JSON, and what a page needs to draw them."""

import base64
import functools
import io

import httpx
import numpy as np
import pytest
from PIL import Image

import paligemma
from paligemma.data import masks
from paligemma.models import mask_codec
from tests.scripts.serving import conftest, plain_engine

BOX = "<loc0256><loc0000><loc0512><loc1023>"
ANSWER = (
  f"{BOX}{''.join(f'<seg{i:03d}>' for i in range(16))} cat ; {BOX} dog ; "
  "<loc0001> bird"
)
SIZE = 17, 31


@pytest.fixture(scope="module")
def codec():
  return paligemma.load_mask_codec(conftest.ASSETS / "tiny_mask_codec.npz")


@pytest.fixture(scope="module")
def address(make_served, tiny_tokenizer, codec):
  engine = plain_engine.PlainEngine(tiny_tokenizer, answer=ANSWER)
  served = make_served(
    engine,
    max_tokens=256,
    decode_masks=functools.partial(mask_codec.decode, codec),
  )
  with conftest.running(served) as server:
    yield server.address


def post(address, task, **asked):
  return httpx.post(f"{address}/v1/{task}", json=asked, timeout=60)


def test_detect(address, data_uri):
  found = post(address, "detect", image=data_uri, labels=["cat", "dog"]).json()
  assert found["prompt"] == "detect cat ; dog"
  assert (found["height"], found["width"]) == SIZE
  assert found["complete"] and found["text"] == ANSWER
  box = [round(x, 2) for x in paligemma.parse(BOX, SIZE)[0]["box"]]
  score = round(np.exp(-0.5), 3)
  for item, label in zip(found["objects"], ("cat", "dog"), strict=True):
    assert item["box"] == box and item["label"] == label
    assert item["score"] == pytest.approx(score, abs=1e-3)
    assert "mask" not in item
  assert found["malformed"].startswith("1 locations and 0 codes")


def test_min_score(address, data_uri):
  found = post(
    address, "detect", image=data_uri, labels=["cat"], min_score=0.61
  ).json()
  assert found["objects"] == []


@pytest.mark.parametrize("form", ["rle", "png"])
def test_segment(address, data_uri, codec, form):
  found = post(
    address, "segment", image=data_uri, labels=["cat"], mask=form
  ).json()
  assert found["prompt"] == "segment cat"
  cat, dog = found["objects"]
  if form == "png":
    data = base64.b64decode(cat["mask"].removeprefix("data:image/png;base64,"))
    mask = np.asarray(Image.open(io.BytesIO(data)).convert("L")) > 0
  else:
    mask = masks.from_rle(cat["mask"], *SIZE)
  expected, _ = paligemma.parse(ANSWER, SIZE, codec=codec)
  assert np.array_equal(mask, expected["mask"]) and mask.any()
  assert "mask" not in dog


def test_without_codec_or_tower(make_served, data_uri):
  with conftest.running(make_served()) as server:
    answer = post(server.address, "segment", image=data_uri, labels=["cat"])
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == (
      "this server has no mask codec (--codec), which decodes masks"
    )
  with conftest.running(make_served(sees=False)) as server:
    answer = post(server.address, "caption", image=data_uri)
    assert "decoder alone" in answer.json()["error"]["message"]
