"""Ops on images: the object that is drawn stays in the box that is told."""

import io
import itertools
import pathlib
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from paligemma.data import image as image_lib
from paligemma.data import image_ops, masks

GOLDEN = pathlib.Path(__file__).parents[1] / "goldens/draw_box/draw_box.npz"
HEIGHT, WIDTH = 29, 41
COLOR = (255, 17, 3)

OPS = [
  image_ops.Decode(),
  image_ops.Resize((53, 19)),
  image_ops.ResizeSmall(19),
  image_ops.CentralCrop((17, 23)),
  image_ops.DrawBox(),
  image_ops.RandomCrop((17, 23)),
  image_ops.InceptionCrop(),
  image_ops.Flip(),
  image_ops.ZoomOut(),
  image_ops.JpegNoise(),
]
GEOMETRIC = [
  image_ops.CentralCrop((17, 23), min_visible=0),
  image_ops.CentralCrop(min_visible=0),
  image_ops.RandomCrop((17, 23), min_visible=0),
  image_ops.InceptionCrop(min_visible=0),
  image_ops.InceptionCrop((0.1, 0.3), (0.5, 2), 0.5, min_visible=0.5),
  image_ops.Flip(probability=1),
  image_ops.ZoomOut(probability=1),
]


def encode(pixels, format="PNG", **options):
  data = io.BytesIO()
  Image.fromarray(pixels).save(data, format, **options)
  return data.getvalue()


def noise(height=HEIGHT, width=WIDTH, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def scene(box, encoded=False):
  """One rectangle in a color of its own on black, and what is known of it."""
  y0, x0, y1, x1 = box
  image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
  image[y0:y1, x0:x1] = COLOR
  mask = (image == COLOR).all(axis=-1)
  return {
    "image": encode(image) if encoded else image,
    "objects": [{"box": box, "label": "red", "mask": mask, "area": 3.0}],
    "height": HEIGHT,
    "width": WIDTH,
    "_where": "a.jsonl:7",
  }


@st.composite
def boxes(draw):
  y0, x0 = draw(st.integers(0, HEIGHT - 2)), draw(st.integers(0, WIDTH - 2))
  y1 = draw(st.integers(y0 + 1, HEIGHT))
  x1 = draw(st.integers(x0 + 1, WIDTH))
  return y0, x0, y1, x1


def rng(seed=0):
  return np.random.default_rng(seed)


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("op", GEOMETRIC, ids=repr)
def test_objects_stay_on_their_pixels(op, encoded):
  @settings(max_examples=40, deadline=None)
  @given(boxes(), st.integers(0, 999))
  def check(box, seed):
    before = scene(box, encoded)
    after = op(before, rng(seed))
    image = image_ops.pixels(after["image"])
    assert (after["height"], after["width"]) == image.shape[:2]
    shown = (image == COLOR).all(axis=-1)
    if not after["objects"]:  # nothing, or too little, is left to be seen
      share = shown.sum() / before["objects"][0]["mask"].sum()
      assert share < op.min_visible or share == 0
      return
    (found,) = after["objects"]
    assert found["box"] == masks.bounding_box(shown)
    np.testing.assert_array_equal(found["mask"], shown)
    assert found["label"] == "red"
    assert before["objects"][0]["area"] == 3

  check()


@settings(max_examples=40, deadline=None)
@given(boxes(), st.integers(20, 67), st.integers(20, 67))
def test_resized_objects_stay_on_their_pixels(box, height, width):
  after = image_ops.Resize((height, width))(scene(box), rng())
  assert after["image"].shape == (after["height"], after["width"], 3)
  assert after["image"].shape == (height, width, 3)
  (found,) = after["objects"]
  y0, x0, y1, x1 = found["box"]
  weight = after["image"][..., 0] / 255.0
  rows, columns = weight.sum(axis=1), weight.sum(axis=0)
  # What is lit in all is the area of the box, within rounding to uint8.
  area = (y1 - y0) * (x1 - x0)
  assert abs(weight.sum() - area) < 0.02 * height * width + 0.15 * area
  # Beyond the box nothing is lit, but for the reach of the kernel.
  reach_y, reach_x = max(1, height / HEIGHT), max(1, width / WIDTH)
  assert not rows[: max(int(y0 - reach_y), 0)].any()
  assert not rows[int(np.ceil(y1 + reach_y)) :].any()
  assert not columns[: max(int(x0 - reach_x), 0)].any()
  assert not columns[int(np.ceil(x1 + reach_x)) :].any()


@pytest.mark.parametrize("op", OPS, ids=lambda op: type(op).__name__)
def test_ops_depend_on_their_rng_alone_and_pickle(op):
  example = scene((3, 5, 20, 37)) | {"bbox": (0.1, 0.2, 0.5, 0.7)}
  example["image"] = noise()
  before = example["image"].copy()
  copy = pickle.loads(pickle.dumps(op))
  assert copy == op
  for seed in range(5):
    ours, theirs = op(example, rng(seed)), copy(example, rng(seed))
    np.testing.assert_array_equal(
      image_ops.pixels(ours["image"]), image_ops.pixels(theirs["image"])
    )
  np.testing.assert_array_equal(example["image"], before)
  assert example["objects"][0]["box"] == (3, 5, 20, 37)


@pytest.mark.parametrize("op", OPS, ids=lambda op: type(op).__name__)
def test_encoded_images_are_decoded(op):
  pixels = noise()
  more = {"bbox": (0.1, 0.2, 0.5, 0.7)}
  plain = op({"image": pixels, **more}, rng(3))
  encoded = op({"image": encode(pixels), **more}, rng(3))
  np.testing.assert_array_equal(
    image_ops.pixels(plain["image"]), image_ops.pixels(encoded["image"])
  )
  assert "height" not in plain
  assert "objects" not in plain


def test_pixels():
  image = noise()
  assert image_ops.pixels(image) is image
  np.testing.assert_array_equal(image_ops.pixels(encode(image)), image)


def test_resize():
  image = noise()
  for method, antialias in itertools.product(image_lib.KERNELS, (True, False)):
    op = image_ops.Resize((11, 13), method, antialias)
    small = op({"image": image}, rng())["image"]
    exact = image_lib.resize(image, (11, 13), method, antialias).clip(0, 255)
    assert small.dtype == np.uint8
    cut = exact - small
    assert cut.min() > -1e-3 and cut.max() < 1, method


@pytest.mark.parametrize(
  ("shape", "side", "expected"),
  [
    ((40, 60), 20, (20, 30)),
    ((60, 40), 20, (30, 20)),
    ((37, 61), 23, (23, 38)),  # 37.92
    ((4, 5), 2, (2, 2)),  # 2.5, to the even one
    ((7, 11), 31, (31, 49)),  # 48.7
  ],
)
def test_resize_small(shape, side, expected):
  image = rng().integers(0, 256, (*shape, 3), np.uint8)
  small = image_ops.ResizeSmall(side)({"image": image}, rng())["image"]
  assert small.shape == (*expected, 3)
  whole = image_ops.Resize(expected, "area")({"image": image}, rng())["image"]
  np.testing.assert_array_equal(small, whole)
  other = image_ops.ResizeSmall(side, "lanczos3")({"image": image}, rng())
  assert np.any(other["image"] != small)


@pytest.mark.parametrize(
  ("shape", "size", "corner", "expected"),
  [
    ((9, 14), (4, 7), (2, 3), (4, 7)),
    ((9, 14), None, (0, 2), (9, 9)),
    ((14, 9), None, (2, 0), (9, 9)),
    ((9, 14), (9, 14), (0, 0), (9, 14)),
  ],
)
def test_central_crop(shape, size, corner, expected):
  image = rng().integers(0, 256, (*shape, 3), np.uint8)
  after = image_ops.CentralCrop(size)({"image": image}, rng())["image"]
  (y, x), (height, width) = corner, expected
  np.testing.assert_array_equal(after, image[y : y + height, x : x + width])


def test_bicubic_does_not_wrap_around():
  image = np.zeros((7, 8, 3), np.uint8)
  image[:, 4:] = 255
  wide = image_ops.Resize((7, 32), "bicubic")({"image": image}, rng())["image"]
  assert (np.diff(wide[3, :, 0].astype(int)) >= -20).all()


def test_other_keys_leave_image_and_objects():
  example = scene((3, 5, 20, 37)) | {"left": encode(noise())}
  after = image_ops.Resize((5, 7), key="left")(example, rng())
  assert after["left"].shape == (5, 7, 3)
  assert after["objects"] is example["objects"]
  assert after["image"] is example["image"]
  after = image_ops.Decode("left")(example, rng())
  np.testing.assert_array_equal(after["left"], noise())


def test_draw_box_equals_tensorflow():
  with np.load(GOLDEN) as golden:
    expected, drawn = golden["images"], golden["boxes"]
  assert expected.any(axis=(1, 2, 3)).sum() > 40
  black = np.zeros(expected.shape[1:], np.uint8)
  for box, image in zip(drawn, expected, strict=True):
    after = image_ops.DrawBox("where")({"image": black, "where": box}, rng())
    np.testing.assert_array_equal(after["image"], image, err_msg=str(box))
  assert not black.any()


@pytest.mark.parametrize(
  "box", [(0.1, 0.2, 0.3), (0.5, 0, 0.1, 1), (0, 0, 1, np.nan), "here"]
)
def test_draw_box_errors(box):
  example = {"image": noise(), "bbox": box, "_where": "d:2"}
  with pytest.raises(
    ValueError, match=r'^d:2: expected a relative box .* under "bbox", found'
  ):
    image_ops.DrawBox()(example, rng())


def test_stack():
  left, right = noise(), encode(noise(7, 5))
  example = {"image": left, "image_right": right, "label": "True"}
  after = image_ops.Stack(("image", "image_right"))(example, rng())
  assert after.keys() == {"image", "label"}
  assert after["image"][0] is left
  assert after["image"][1] is right
  with pytest.raises(ValueError, match=r'missing key "image_righ".*Did you'):
    image_ops.Stack(("image", "image_righ"))(example, rng())


def test_random_crop_reaches_every_place():
  image = np.zeros((5, 6, 3), np.uint8)
  image[..., 0], image[..., 1] = np.indices((5, 6))
  op = image_ops.RandomCrop((3, 4))
  corners = set()
  for seed in range(200):
    part = op({"image": image}, rng(seed))["image"]
    assert part.shape == (3, 4, 3)
    corners.add(tuple(part[0, 0, :2].tolist()))
  assert corners == {(y, x) for y in range(3) for x in range(3)}
  with pytest.raises(
    ValueError,
    match=r"^e:1: image of 5x6 pixels is smaller than a crop of 7x4;",
  ):
    image_ops.RandomCrop((7, 4))({"image": image, "_where": "e:1"}, rng())
  with pytest.raises(ValueError, match=r"^e:1: .*smaller than a crop of 5x7;"):
    image_ops.CentralCrop((5, 7))({"image": image, "_where": "e:1"}, rng())


def test_inception_crop_keeps_its_bounds():
  height, width = 97, 131
  image = noise(height, width)
  op = image_ops.InceptionCrop((0.2, 0.6), (0.5, 2))
  shapes = []
  for seed in range(300):
    shapes.append(op({"image": image}, rng(seed))["image"].shape[:2])
  heights, widths = np.array(shapes).T
  shares = heights * widths / (height * width)
  assert 0.2 <= shares.min() < 0.25
  assert 0.55 < shares.max() <= 0.6
  aspects = widths / heights
  assert 0.48 < aspects.min() < 0.55
  assert 1.7 < aspects.max() < 2.05
  # Means of 20000 crops of tf.image.sample_distorted_bounding_box, of 97x131
  # pixels and by default: height 61.0 +- 0.2, width 63.3 +- 0.2.
  op = image_ops.InceptionCrop()
  drawn = rng()
  windows = [op._draw(height, width, drawn) for _ in range(9000)]
  y0, x0, y1, x1 = np.array([window for window in windows if window]).T
  assert abs((y1 - y0).mean() - 61.0) < 1
  assert abs((x1 - x0).mean() - 63.3) < 1
  assert (y0 == 0).any()
  assert (y1 == height).any()
  assert (x1 == width).any()


def test_inception_crop_that_never_fits_leaves_the_image():
  image = noise(101, 3)
  op = image_ops.InceptionCrop((0.9, 1.0))
  assert op({"image": image}, rng())["image"] is image


def test_inception_crop_covers_an_object():
  op = image_ops.InceptionCrop((0.1, 0.5), min_covered=1.0, min_visible=1.0)
  for seed in range(100):
    after = op(scene((20, 30, 28, 40)), rng(seed))
    assert len(after["objects"]) == 1
    y0, x0, y1, x1 = after["objects"][0]["box"]
    assert (y1 - y0, x1 - x0) == (8, 10)
  nothing = scene((20, 30, 28, 40)) | {"objects": []}
  assert op(nothing, rng())["image"].size < HEIGHT * WIDTH * 3 * 0.51


def test_flip():
  image = noise()
  example = {"image": image, "suffix": "the cat", "question": "Right or wrong?"}
  turned = sum(
    np.array_equal(
      image_ops.Flip()(example, rng(seed))["image"], image[:, ::-1]
    )
    for seed in range(200)
  )
  assert 70 < turned < 130
  assert image_ops.Flip(0)(example, rng()) is example
  flip = image_ops.Flip(1, texts=("suffix",))
  assert flip(example, rng())["image"] is not image
  for text in ("a man on the left", "Leftmost.", "RIGHT", "up-right"):
    assert flip(example | {"suffix": text}, rng())["image"] is image
  for text in ("bright", "an upright man", "cleft", ""):
    assert flip(example | {"suffix": text}, rng())["image"] is not image
  both = image_ops.Flip(1, texts=("suffix", "question"))
  assert both(example, rng())["image"] is image
  with pytest.raises(ValueError, match='missing key "sufix"'):
    image_ops.Flip(1, texts=("sufix",))(example, rng())


def test_zoom_out():
  image = noise()
  op = image_ops.ZoomOut(2.5, probability=1, fill=(1, 2, 3))
  factors = []
  for seed in range(200):
    canvas = op({"image": image}, rng(seed))["image"]
    assert canvas.dtype == np.uint8
    factors.append(canvas.shape[0] / HEIGHT)
    fill = (canvas == (1, 2, 3)).all(axis=-1).sum()
    assert abs(fill - (canvas[..., 0].size - HEIGHT * WIDTH)) < 5
  assert 1 <= min(factors) < 1.1
  assert 2.3 < max(factors) <= 2.5
  kept = image_ops.ZoomOut(probability=0.3)
  same = sum(
    kept({"image": image}, rng(seed))["image"] is image for seed in range(200)
  )
  assert 110 < same < 170


def test_zoom_out_is_bounded_by_the_largest_image(monkeypatch):
  monkeypatch.setattr(image_lib, "MAX_PIXELS", 2 * HEIGHT * WIDTH)
  for seed in range(20):
    op = image_ops.ZoomOut(probability=1)
    canvas = op({"image": noise()}, rng(seed))["image"]
    assert canvas.size <= 2 * HEIGHT * WIDTH * 3


def test_jpeg_noise():
  image = noise()
  low = image_ops.JpegNoise((5, 5))({"image": image}, rng())["image"]
  high = image_ops.JpegNoise((95, 95))({"image": image}, rng())["image"]
  assert isinstance(low, bytes)
  assert len(low) < len(high) / 3
  assert image_ops.pixels(low).shape == image.shape
  assert (
    image_ops.JpegNoise(probability=0)({"image": image}, rng())["image"]
    is image
  )
  sizes = {
    len(image_ops.JpegNoise((5, 95))({"image": image}, rng(seed))["image"])
    for seed in range(30)
  }
  assert len(sizes) > 20


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: image_ops.Resize((0, 3)), r"size of Resize is \(0, 3\), expected"),
    (lambda: image_ops.Resize((3, 3), "bilinea"), 'Did you mean "bilinear"'),
    (lambda: image_ops.RandomCrop((3,)), r"size of RandomCrop is \(3,\)"),
    (lambda: image_ops.ResizeSmall(0), "side of ResizeSmall is 0, expected"),
    (lambda: image_ops.ResizeSmall(3, "aria"), 'Did you mean "area"'),
    (lambda: image_ops.CentralCrop((3, 0)), r"size of CentralCrop is \(3, 0\)"),
    (lambda: image_ops.RandomCrop((3, 3), 2), "min_visible of RandomCrop is 2"),
    (lambda: image_ops.InceptionCrop((0.5, 0.1)), r"area of InceptionCrop is"),
    (
      lambda: image_ops.InceptionCrop((5, 100)),
      r"is \(5, 100\), expected it in",
    ),
    (
      lambda: image_ops.InceptionCrop(aspect=(0, 1)),
      "expected 0 < low <= high",
    ),
    (lambda: image_ops.Flip(1.5), "probability of Flip is 1.5, expected it in"),
    (lambda: image_ops.ZoomOut(0.5), "largest of ZoomOut is 0.5, expected a"),
    (lambda: image_ops.JpegNoise((0, 9)), r"quality of JpegNoise is \(0, 9\)"),
  ],
)
def test_bad_arguments(make, message):
  with pytest.raises(ValueError, match=message):
    make()
