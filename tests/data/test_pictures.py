"""Pictures in every form that people have are one array."""

import functools
import io
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from paligemma.data import pictures

HEIGHT, WIDTH = 7, 5


def pixels(*shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(picture, kind="PNG"):
  data = io.BytesIO()
  picture.save(data, kind)
  return data.getvalue()


COLOUR = pixels(HEIGHT, WIDTH, 3)
GRAY = pixels(HEIGHT, WIDTH)
SEEN = np.repeat(GRAY[:, :, None], 3, axis=2)
RGBA = np.concatenate([COLOUR, np.full((HEIGHT, WIDTH, 1), 255, np.uint8)], 2)
PNG = encode(Image.fromarray(COLOUR))


@pytest.mark.parametrize(
  ("image", "expected"),
  [
    (PNG, COLOUR),
    (bytearray(PNG), COLOUR),
    (memoryview(PNG), COLOUR),
    (Image.fromarray(COLOUR), COLOUR),
    (Image.fromarray(GRAY), SEEN),
    (COLOUR, COLOUR),
    (COLOUR[::-1, ::2], COLOUR[::-1, ::2]),
    (jnp.asarray(COLOUR), COLOUR),
    (GRAY, SEEN),
    (GRAY[:, :, None], SEEN),
    (RGBA, COLOUR),
    (RGBA * np.uint8([1, 1, 1, 0]), np.full_like(COLOUR, 255)),
    ((COLOUR / 255).astype(np.float32), COLOUR),
    (COLOUR / 255, COLOUR),
    ((GRAY / 255).astype(np.float64), SEEN),
    (jnp.asarray(COLOUR / 255), COLOUR),
    (np.float16([[0, 0.5, 1]]), np.uint8([[[0] * 3, [128] * 3, [255] * 3]])),
    (np.zeros((2, 3), np.float32), np.zeros((2, 3, 3), np.uint8)),
  ],
)
def test_every_form(image, expected):
  found = pictures.pixels(image)
  assert found.dtype == np.uint8
  np.testing.assert_array_equal(found, expected)
  assert pictures.size(image) == expected.shape[:2]


def test_pixels_come_back_as_they_are():
  assert pictures.pixels(COLOUR) is COLOUR


@pytest.mark.parametrize(
  ("image", "found"),
  [
    (GRAY[0], r"found uint8\[5\], expected one picture: a file's contents"),
    (COLOUR[:, :, :2], r"found uint8\[7, 5, 2\], expected one picture"),
    (pixels(3, 7, 5), r"found uint8\[3, 7, 5\], .*; its channels come first"),
    (np.stack([COLOUR] * 2), r"found uint8\[2, 7, 5, 3\], expected one"),
    (COLOUR[:0], r"found an empty image, uint8\[0, 5, 3\]$"),
    (COLOUR.astype(np.int64), r"found int64\[7, 5, 3\], expected one"),
    (COLOUR.astype(np.uint16), r"found uint16\[7, 5, 3\], expected one"),
    (COLOUR > 7, r"found bool\[7, 5, 3\], expected one"),
    (jnp.zeros((7, 5, 3), jnp.bfloat16), r"found bfloat16\[7, 5, 3\], expec"),
    (COLOUR.astype(float), r"values from 0 to 248, expected them in \[0, 1"),
    (COLOUR / 127.5 - 1, r"values from -1 to [\d.]+, expected them in \[0, 1"),
    (np.float32([[0.5, np.nan]]), "values from nan to nan, expected them in"),
    ([COLOUR, COLOUR], "found a list of 2, expected one picture"),
    ("a.jpg", "found str, expected one picture"),
    (pathlib.Path("a.jpg"), "found .*Path, expected one picture"),
    (None, "found NoneType, expected one picture"),
    ({"bytes": b""}, "found dict, expected one picture"),
    (iter([COLOUR]), "found list_iterator, expected one picture"),
    (b"hello", "not a readable image: 5 bytes that begin with b'hello'; re"),
    (PNG[:60], "truncated or damaged image of 60 bytes"),
  ],
)
def test_other_things_are_refused(image, found):
  for read in (pictures.pixels, pictures.size):
    with pytest.raises(ValueError, match=f"^b:3: .*{found}") as info:
      read(image, where="b:3")
    assert "\n" not in str(info.value)


def test_the_contents_of_a_file(tmp_path):
  (tmp_path / "a.png").write_bytes(PNG)
  assert pictures.read(tmp_path / "a.png") == PNG
  assert pictures.read("a.png", root=tmp_path) == PNG
  read = functools.partial(pictures.read, where="a.jsonl:3")
  with pytest.raises(ValueError, match=r"^a.jsonl:3: cannot read image .*no.p"):
    read("no.png", root=tmp_path)


def test_a_file_too_large_for_any_picture(tmp_path, monkeypatch):
  (tmp_path / "a.png").write_bytes(PNG)
  monkeypatch.setattr(pictures.image_files, "MAX_BYTES", len(PNG))
  assert pictures.read(tmp_path / "a.png") == PNG
  monkeypatch.setattr(pictures.image_files, "MAX_BYTES", len(PNG) - 1)
  with pytest.raises(
    ValueError,
    match=rf"a.png: cannot read image: it has more than {len(PNG) - 1}",
  ):
    pictures.read(tmp_path / "a.png")
