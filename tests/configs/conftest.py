"""A folder of made-up JSONL for any transfer."""

import io
import json

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def picture():
  """PNG of 31 x 43 pixels."""
  pixels = np.random.default_rng(0).integers(0, 256, (31, 43, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG")
  return file.getvalue()


@pytest.fixture(scope="session")
def clip():
  """Seven frames of 18 x 26 pixels."""
  av = pytest.importorskip("av")
  file = io.BytesIO()
  with av.open(file, "w", format="mp4") as out:
    stream = out.add_stream("mpeg4", rate=10)
    stream.height, stream.width, stream.pix_fmt = 18, 26, "yuv420p"
    for i in range(7):
      pixels = np.full((18, 26, 3), 30 * i, np.uint8)
      frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
      out.mux(stream.encode(frame))
    out.mux(stream.encode(None))
  return file.getvalue()


@pytest.fixture
def write(tmp_path, picture, clip):
  """Writes train.jsonl, eight times the example, and val.jsonl, three times."""

  def write(example):
    (tmp_path / "a.png").write_bytes(picture)
    (tmp_path / "b.mp4").write_bytes(clip)
    line = json.dumps(example) + "\n"
    (tmp_path / "train.jsonl").write_text(8 * line)
    (tmp_path / "val.jsonl").write_text(3 * line)
    return tmp_path

  return write
