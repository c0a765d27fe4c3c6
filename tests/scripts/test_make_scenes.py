"""Every answer is what can be seen in the picture, and scores full marks."""

import functools
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from paligemma import metrics
from paligemma.checkpoints import npz
from paligemma.data import location, mask_codes
from paligemma.data import masks as masks_lib
from paligemma.models import mask_codec
from scripts import make_digits, make_scenes

CODEC = pathlib.Path(__file__).parents[1] / "goldens/mask_codec/mask_codec.npz"
SIZE = (make_scenes.SIDE, make_scenes.SIDE)
make = functools.partial(
  make_scenes.make_scenes,
  codec=CODEC,
  digits="scanned",
  ask="plainly",
  seed=5,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  out = tmp_path_factory.mktemp("scenes") / "set"
  make(out, num_train=23, num_test=13)
  return out


def _examples(folder, name):
  lines = (folder / f"{name}.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_printed_digits_have_the_form_of_scans():
  rng = np.random.default_rng(2)
  scans, labels = make_scenes.print_scans(211, rng)
  assert scans.shape == (211, 8, 8)
  assert scans.dtype == np.uint8
  assert scans.max() == 16
  assert (scans >= 9).any(axis=2).all()  # every row of every digit has ink
  assert sorted(set(labels.tolist())) == list(range(10))
  # Those of one label are more alike than those of two.
  means = np.stack([scans[labels == i].mean(0) for i in range(10)])
  distance = ((scans[:, None] - means[None]) ** 2).sum((2, 3))
  assert (distance.argmin(1) == labels).mean() > 0.6


def test_each_split_has_digits_of_its_own():
  for digits in ("scanned", "printed"):
    found = make_scenes.load_scans(digits, 3)
    assert list(found) == ["train", "test"]
    seen = {scan.tobytes() for scan in found["train"][0]}
    again = [scan.tobytes() in seen for scan in found["test"][0]]
    assert np.mean(again) < 0.01
    assert all(len(scans) == len(labels) for scans, labels in found.values())


@functools.cache
def _scans():
  return make_digits.load_scans()


def _things(seed):
  scans, labels = _scans()
  rng = np.random.default_rng(seed)
  return make_scenes.draw_objects(scans[:101], labels[:101], rng)


@pytest.mark.parametrize(
  ("ask", "per_picture"),
  [
    ("plainly", {"detect": 1, "segment": 0}),
    ("by_name", {"detect": 2, "answer": 1, "segment": 1}),
  ],
)
def test_every_picture_is_asked_about(ask, per_picture, tmp_path):
  out = tmp_path / "set"
  make(out, num_train=23, num_test=7, ask=ask)
  sets = {"train": (_examples(out, "train"), 23)}
  for kind in per_picture:
    sets[kind] = _examples(out, f"test_{kind}"), 7
    assert {e["prefix"].partition(" ")[0] for e in sets[kind][0]} == {kind}
  assert len(list(out.glob("test_*"))) == len(per_picture)
  for name, (examples, number) in sets.items():
    alone = sum(len(e.get("objects", "--")) == 1 for e in examples)
    if ask == "plainly" and name == "train":
      assert len(examples) == number + alone
    elif ask == "by_name" and name != "train":
      assert len(examples) == number * per_picture[name]
  assert len(sets["segment"][0]) >= 1
  examples = [e for part, _ in sets.values() for e in part]
  found = {p.relative_to(out).as_posix() for p in out.rglob("*.png")}
  assert found == {e["image"] for e in examples}
  for e in examples:
    assert (e["height"], e["width"]) == SIZE
    assert (
      e["prefix"].startswith("answer")
      or "objects" in e
      or ({"box", "mask"} <= e.keys())
    )


def test_the_mask_of_a_digit_that_is_alone():
  numbers = set()
  for seed in range(31):
    things = _things(seed)
    plain, masked = make_scenes.plainly(things, None)
    assert [question["prefix"] for question in plain] == ["detect digits"]
    assert masked == ([("digit", things[0])] if len(things) == 1 else [])
    numbers.add(len(things))
  assert numbers == {1, 2, 3}


def test_boxes_are_where_the_ink_is(folder):
  seen = 0
  for e in _examples(folder, "train"):
    if e["prefix"] != "detect digits":
      continue
    pixels = np.asarray(Image.open(folder / e["image"]), int)
    assert pixels.shape == SIZE
    lit = pixels > (pixels.min() + pixels.max()) / 2
    covered = np.zeros(SIZE, bool)
    for thing in e["objects"]:
      y0, x0, y1, x1 = thing["box"]
      covered[y0:y1, x0:x1] = True
      # Noise may hide an edge, or add some outside.
      inner = masks_lib.bounding_box(lit[y0:y1, x0:x1])
      assert np.abs(np.subtract(inner, (0, 0, y1 - y0, x1 - x0))).max() <= 2
      seen += 1
    assert (lit & ~covered).mean() < 0.01
  assert seen > 23


def test_digits_are_whole_apart_and_on_the_grid():
  heights, numbers = set(), set()
  for seed in range(101):
    things = _things(seed)
    numbers.add(len(things))
    labels = [thing.label for thing in things]
    assert any(labels.count(label) == 1 for label in labels)
    assert [t.box[0] for t in things] == sorted(t.box[0] for t in things)
    free = np.ones(SIZE, bool)
    for thing in things:
      box = np.array(thing.box)
      assert not (box % 7).any()
      assert np.abs(masks_lib.bounding_box(thing.mask) - box).max() <= 1
      assert box.min() >= 0 and box.max() <= 112
      y0, x0, y1, x1 = thing.box
      assert free[y0:y1, x0:x1].all()
      free[max(y0 - 7, 0) : y1 + 7, max(x0 - 7, 0) : x1 + 7] = False
      heights.add(y1 - y0)
  assert numbers == {1, 2, 3}
  assert min(heights) == 42 and max(heights) == 112


def test_digits_keep_their_form():
  scan = np.zeros((8, 8), np.uint8)
  scan[1:7, 2:5] = 16  # twice as high as wide
  for height in (9, 14):
    picture, size = make_scenes.enlarge(scan, height)
    assert size == (7 * height, 7 * round(height / 2))
    inside = make_scenes.is_inside(np.asarray(picture))
    expected = (7, 7, 7 + size[0], 7 + size[1])
    assert masks_lib.bounding_box(inside) == expected
    assert inside.sum() > 0.9 * size[0] * size[1]


def test_the_answers_score_full_marks(folder):
  examples = _examples(folder, "test_detect")
  answers = [e["suffix"] for e in examples]
  for key in ("suffix", "objects"):
    scores = metrics.make("detection")(answers, examples, answer_key=key)
    assert scores["AP"] == 1.0 and scores["invalid"] == 0
  examples = _examples(folder, "test_segment")
  decode = functools.partial(
    mask_codec.decode, mask_codec.from_arrays(npz.load(CODEC))
  )
  scores = metrics.METRICS["segmentation"](decode)(
    [e["suffix"] for e in examples], examples
  )
  assert scores["boxacc/0.75"] == 1.0 and scores["invalid"] == 0


def test_codes_are_those_of_the_mask(folder):
  encoder = mask_codes.Encoder(CODEC)
  examples = _examples(folder, "test_segment")
  assert examples
  for e in examples:
    mask = masks_lib.from_rle(e["mask"], *SIZE)
    assert masks_lib.bounding_box(mask) == tuple(e["box"])
    (found,) = location.parse(e["suffix"], SIZE)
    assert e["prefix"] == "segment digit"
    assert found.label in "0123456789"
    assert found.codes == encoder(mask, e["box"])


def test_boxes_come_in_the_order_of_the_question():
  absent = orders = 0
  for seed in range(101):
    things = _things(seed)
    question = make_scenes.ask_some(things, np.random.default_rng(seed))
    names = question["prefix"].removeprefix("detect ").split(" ; ")
    assert len(set(names)) == len(names) <= 2
    found = [(t["label"], t["box"]) for t in question["objects"]]
    assert found == [
      (name, t.box) for name in names for t in things if t.label == name
    ]
    assert found
    parsed = location.parse(question["suffix"], SIZE)
    assert [thing.label for thing in parsed] == [label for label, _ in found]
    absent += len({label for label, _ in found}) < len(names)
    orders += names != sorted(names)
  assert 10 < absent < 60 and 10 < orders < 60


def test_train_and_test_share_no_scan(tmp_path, monkeypatch):
  scans, _ = make_digits.load_scans()
  labels = 5 * (np.arange(len(scans)) >= len(scans) - 500)
  labels += np.arange(len(scans)) % 5
  monkeypatch.setattr(make_digits, "load_scans", lambda: (scans, labels))
  make(tmp_path / "set", num_train=11, num_test=11)
  found = {
    name: {
      thing["label"]
      for e in _examples(tmp_path / "set", name)
      for thing in e.get("objects", ())
    }
    for name in ("train", "test_detect")
  }
  assert found["train"] <= set("01234") and found["test_detect"] <= set("56789")
  assert found["train"] and found["test_detect"]


def test_more_pictures_begin_with_the_same(folder, tmp_path):
  make(tmp_path / "more", num_train=29, num_test=13)
  more = (tmp_path / "more" / "train.jsonl").read_text()
  assert more.startswith((folder / "train.jsonl").read_text())
  for name in ("train/00022.png", "test/00006.png", "test_detect.jsonl"):
    assert (tmp_path / "more" / name).read_bytes() == (
      folder / name
    ).read_bytes()
  assert [p.name for p in tmp_path.iterdir()] == ["more"]
  make(tmp_path / "other", num_train=1, num_test=7, seed=6)
  other = (tmp_path / "other" / "test_detect.jsonl").read_text()
  assert other != (folder / "test_detect.jsonl").read_text()


def test_a_folder_is_whole_or_not_there(folder, tmp_path):
  with pytest.raises(OSError, match="exists already, expected"):
    make(folder, num_train=1, num_test=1)
  with pytest.raises(ValueError, match=r"none.npz: cannot read a mask codec"):
    make(tmp_path / "set", num_train=1, num_test=1, codec=tmp_path / "none.npz")
  assert not list(tmp_path.iterdir())
