"""Segmentation, against the same rules written once more, pixel by pixel."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from paligemma.checkpoints import npz
from paligemma.data import location
from paligemma.metrics import segmentation
from paligemma.models import mask_codec

GOLDEN = pathlib.Path(__file__).parents[1] / "goldens/mask_codec/mask_codec.npz"
CODES = tuple(range(3, 19))
SEG = "".join(f"<seg{c:03d}>" for c in CODES)
SIZE = (97, 61)


def loc(*corners):
  return "".join(f"<loc{c:04d}>" for c in corners)


def full(codes):
  """A codec all of whose masks fill their box."""
  assert codes.shape[1:] == (16,)
  assert codes.dtype == np.int32
  return np.ones((len(codes), 64, 64), np.float32)


def disks(codes):
  """Disks of a radius that depends on the first code."""
  y, x = np.mgrid[-31.5:32, -31.5:32]
  radius = 8 + codes[:, 0, None, None] % 24
  return np.float32(1 - np.hypot(y, x) / radius)


def mask_of(box, size=SIZE):
  mask = np.zeros(size, bool)
  y0, x0, y1, x1 = box
  mask[y0:y1, x0:x1] = True
  return mask


FULL = segmentation.Segmentation(full)
WHOLE = {"mask": np.ones(SIZE, bool)}


def test_a_perfect_prediction():
  scores = FULL([loc(0, 0, 1023, 1023) + SEG], [WHOLE])
  assert scores == {
    "miou": 1.0,
    "boxacc/0.5": 1.0,
    "boxacc/0.75": 1.0,
    "invalid": 0.0,
    "total": 1.0,
  }


def test_half_a_mask():
  # Rows from 97 * 512 / 1023 = 48.547, hence from 48: 49 of 97.
  (row,) = FULL.rows([loc(512, 0, 1023, 1023) + SEG], [WHOLE])
  assert row["miou"] == pytest.approx(49 / 97)
  # The box, not rounded, is 511 / 1023 of the whole: below a half.
  assert row["boxacc/0.5"] == 0.0
  (row,) = FULL.rows([loc(511, 0, 1023, 1023) + SEG], [WHOLE])
  assert row["miou"] == pytest.approx(49 / 97)
  assert (row["boxacc/0.5"], row["boxacc/0.75"]) == (1.0, 0.0)


@pytest.mark.parametrize(
  ("share", "at_half", "at_three_quarters"),
  [(0.5, 1, 0), (0.5 - 1e-9, 0, 0), (0.75, 1, 1), (0.75 - 1e-9, 1, 0)],
)
def test_box_iou_at_the_threshold_counts(share, at_half, at_three_quarters):
  example = {"mask": np.ones((31, 2), bool), "box": (0, 0, 31, 2 * share)}
  (row,) = FULL.rows([loc(0, 0, 1023, 1023) + SEG], [example])
  assert row["boxacc/0.5"] == at_half
  assert row["boxacc/0.75"] == at_three_quarters


@pytest.mark.parametrize(
  "text",
  [
    "",
    "a cat",
    loc(0, 0, 1023, 1023),
    loc(0, 0, 1023) + SEG,
    loc(0, 0, 1023, 1023) + SEG[8:],
    SEG + loc(0, 0, 1023, 1023),
    " " + loc(0, 0, 1023, 1023) + SEG,
    loc(0, 0, 1023, 1023) + " " + SEG,
    loc(0, 0, 1023, 1024) + SEG,
    loc(0, 0, 1023, 1023) + SEG[8:] + "<seg128>",
    loc(5, 0, 5, 1023) + SEG,
    loc(0, 9, 1023, 8) + SEG,
    loc(0, 0, 1, 1) + SEG,  # valid, but no pixel: 97 / 1023 and 61 / 1023
  ],
)
def test_invalid_predictions(text):
  assert FULL([text], [WHOLE]) == {
    "miou": 0.0,
    "boxacc/0.5": 0.0,
    "boxacc/0.75": 0.0,
    "invalid": 1.0,
    "total": 1.0,
  }


def test_a_box_without_a_pixel_counts_as_box():
  example = {"mask": mask_of((0, 0, 1, 1)), "box": (0, 0, 97 / 1023, 61 / 1023)}
  (row,) = FULL.rows([loc(0, 0, 1, 1) + SEG], [example])
  assert (row["miou"], row["invalid"]) == (0.0, 1.0)
  assert row["boxacc/0.75"] == 1.0


def test_what_follows_is_not_looked_at():
  text = loc(0, 0, 1023, 1023) + SEG
  for more in (" cat", "<seg001>", loc(1, 2), "\n"):
    assert FULL([text + more], [WHOLE])["miou"] == 1.0


def test_parse():
  locs, codes = segmentation.parse(loc(1, 0, 1023, 7) + SEG + " x")
  assert locs.tolist() == [1, 0, 1023, 7]
  assert tuple(codes) == CODES
  assert segmentation.parse(loc(1, 0, 1, 7) + SEG) is None
  assert segmentation.parse(loc(1, 7, 5, 7) + SEG) is None


def by_hand(text, mask, box):
  """The rules of the reference, one prediction at a time."""
  height, width = mask.shape
  found = location.parse(text[: 4 * 9 + 16 * 8], (1, 1))
  y0, x0, y1, x1 = found[0].box
  gy0, gx0, gy1, gx1 = (b / s for b, s in zip(box, 2 * mask.shape, strict=True))
  common = max(min(y1, gy1) - max(y0, gy0), 0) * max(
    min(x1, gx1) - max(x0, gx0), 0
  )
  union = (y1 - y0) * (x1 - x0) + (gy1 - gy0) * (gx1 - gx0) - common
  y0, y1 = int(y0 * height), int(y1 * height)
  x0, x1 = int(x0 * width), int(x1 * width)
  if y1 <= y0 or x1 <= x0:
    return common / union, 0.0
  decoded = disks(np.array([found[0].codes], np.int32))[0]
  picture = Image.fromarray(decoded).resize([x1 - x0, y1 - y0], Image.BILINEAR)
  pasted = np.zeros(mask.shape, bool)
  pasted[y0:y1, x0:x1] = np.asarray(picture) > 0
  return common / union, (pasted & mask).sum() / (pasted | mask).sum()


def test_equals_the_rules_written_once_more():
  rng = np.random.default_rng(13)
  metric = segmentation.Segmentation(disks)
  texts, examples, expected = [], [], []
  for _ in range(151):  # more than two batches of masks
    size = rng.integers(2, 83, 2)
    (y0, y1), (x0, x1) = np.sort(rng.choice(1024, (2, 2), replace=False), 1)
    codes = rng.integers(0, 128, 16)
    texts.append(loc(y0, x0, y1, x1) + "".join(f"<seg{c:03d}>" for c in codes))
    near = np.array([y0, x0, y1, x1]) + rng.integers(-90, 90, 4)
    near = np.clip(near, 0, 1023) / 1023 * np.tile(size, 2)
    near[2:] = np.maximum(near[2:], near[:2] + 1)
    truth = mask_of(np.round(near).astype(int), size) & (rng.random(size) < 0.9)
    truth[0, 0] = True
    examples.append({"mask": truth, "box": near})
    expected.append(by_hand(texts[-1], truth, near))
  rows = metric.rows(texts, examples)
  for row, (boxes, masks) in zip(rows, expected, strict=True):
    assert row["miou"] == pytest.approx(masks)
    assert row["boxacc/0.5"] == (boxes >= 0.5)
    assert row["boxacc/0.75"] == (boxes >= 0.75)
  scores = metric.reduce(rows)
  assert scores["miou"] == pytest.approx(np.mean([m for _, m in expected]))
  assert 0.1 < scores["miou"] < 0.6
  assert 0.1 < scores["boxacc/0.75"] < scores["boxacc/0.5"] < 0.9


def test_invalid_ones_between_do_not_shift_the_masks():
  metric = segmentation.Segmentation(disks)
  good = [
    loc(0, 0, 1023, 1023) + SEG.replace("003", f"{c:03d}") for c in (5, 9)
  ]
  alone = [metric.rows([text], [WHOLE])[0] for text in good]
  assert alone[0]["miou"] != alone[1]["miou"]
  rows = metric.rows([good[0], "x", good[1]], [WHOLE] * 3)
  assert [rows[0], rows[2]] == alone
  scores = metric.reduce(rows)
  assert (scores["invalid"], scores["total"]) == (1.0, 3.0)


def test_masks_as_runs_and_a_box_by_default():
  mask = mask_of((7, 11, 80, 53))
  counts = [0]
  for inside in mask.T.reshape(-1):
    if inside != (len(counts) % 2 == 0):
      counts.append(0)
    counts[-1] += 1
  runs = {"size": list(SIZE), "counts": counts}
  texts = [loc(80, 190, 750, 900) + SEG]
  expected = FULL.rows(texts, [{"mask": mask, "box": (7, 11, 80, 53)}])
  assert FULL.rows(texts, [{"mask": runs}]) == expected
  assert FULL.rows(texts, [{"mask": runs, "box": None}]) == expected
  assert FULL.rows(texts, [{"mask": 255 * mask.astype(np.uint8)}]) == expected
  assert 0.5 < expected[0]["miou"] < 1


def test_with_the_codec():
  params = mask_codec.from_arrays(npz.load(GOLDEN))
  codes = np.arange(16)[None]
  middle = np.median(mask_codec.decode(params, codes))

  def decode(codes):  # random weights, whose masks are not around 0
    return mask_codec.decode(params, codes) - middle

  decoded = np.asarray(decode(codes))[0]
  # 11, 13 and 43 come back from text a little smaller, and are rounded down.
  part = Image.fromarray(decoded).resize((30, 61), Image.Resampling.BILINEAR)
  truth = np.zeros(SIZE, bool)
  truth[10:71, 12:42] = np.asarray(part) > 0
  assert 0.1 < truth[10:71, 12:42].mean() < 0.9
  text = location.encode_box((11, 13, 71, 43), SIZE)
  text += "".join(f"<seg{c:03d}>" for c in range(16))
  metric = segmentation.Segmentation(decode)
  assert metric([text], [{"mask": truth}])["miou"] == 1.0


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"mask": None}, '"mask" has shape .*, expected an array'),
    ({"mask": np.zeros(SIZE)}, '"mask" is empty, expected an array'),
    ({"mask": np.zeros((3, 5, 1))}, r'"mask" has shape \(3, 5, 1\)'),
    ({"mask": [[1, 0], [1]]}, '"mask" cannot be read'),
    ({"mask": {"size": [2, 3]}}, '"mask" cannot be read'),
    ({"mask": {"size": [2, 3], "counts": [0, 5]}}, "sum to 5, expected 6"),
    ({"box": (0, 0, 5)}, '"box" is'),
    ({"box": "abcd"}, '"box" is'),
    ({"box": (5, 0, 5, 9)}, '"box" is .*with y0 < y1'),
    ({"box": (0, 0, np.nan, 9)}, '"box" is'),
  ],
)
def test_bad_annotations_are_named(change, message):
  bad = WHOLE | {"_where": "v.jsonl:2"} | change
  with pytest.raises(ValueError, match=f"^v.jsonl:2: .*{message}") as error:
    FULL(["", ""], [WHOLE, bad])
  assert "\n" not in str(error.value)


def test_a_missing_mask_is_named():
  with pytest.raises(ValueError, match=r'^example 1: no mask under "mask"'):
    FULL(["", ""], [WHOLE, {"masks": 1}])
