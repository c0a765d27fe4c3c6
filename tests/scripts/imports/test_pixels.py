"""Boxes in pixels, and as locations."""

import numpy as np
import pytest

from paligemma.data import location
from scripts.imports import entries, pixels


def thing(box, **arguments):
  return entries.Object("cat", box, "here", **arguments)


def test_shares_of_six_decimals_give_the_pixels_they_were_made_of():
  height, width = size = (3989, 5987)
  rng = np.random.default_rng(0)
  for quantum in (1, 0.5, 0.01):
    corners = rng.integers(0, 3980 / quantum, (97, 2, 2)) * quantum
    for pair in corners:
      (y0, x0), (y1, x1) = pair.min(axis=0), pair.max(axis=0) + 1
      given = thing((y0, x0, y1, x1))
      x, y = round((x0 + x1) / 2 / width, 6), round((y0 + y1) / 2 / height, 6)
      w, h = round((x1 - x0) / width, 6), round((y1 - y0) / height, 6)
      shares = thing(entries.BOXES["cxcywh"](x, y, w, h), shares=True)
      wanted = tuple(np.round((y0, x0, y1, x1), 2))
      assert pixels.box(given, size) == wanted
      assert pixels.box(shares, size) == wanted


@pytest.mark.parametrize("size", [(97, 4001), (5003, 47), (11, 13)])
def test_every_box_comes_back_within_half_a_location(size):
  rng = np.random.default_rng(0)
  half_bins = np.array([*size, *size]) / 1023 / 2
  for _ in range(97):
    y, x = (np.sort(rng.uniform(0, side, 2)) for side in size)
    box = pixels.box(thing((y[0], x[0], y[1], x[1])), size)
    (back,) = location.parse(location.encode_box(box, size), size)
    # Above the hundredth of a pixel that a box is rounded to.
    assert (np.abs(np.subtract(back.box, box)) <= half_bins + 1e-9).all()
    assert (np.abs(np.subtract(box, (y[0], x[0], y[1], x[1]))) < 0.0051).all()
