"""Boxes, labels and texts of an image on their way into a prompt."""

import dataclasses
import json
import math
import pathlib

import numpy as np
import pytest
from PIL import Image

from paligemma.data import location
from scripts.imports import entries, pixels, prompts

SIZE = (120, 200)


@pytest.fixture
def image(tmp_path):
  Image.new("RGB", SIZE[::-1]).save(tmp_path / "a.png")
  return tmp_path / "a.png"


def thing(box, label="cat", **arguments):
  return entries.Object(label, box, "x.json: object 3", **arguments)


def detect(image, *things, labels=("cat",), task="detect", encode=None, **more):
  problems = entries.Problems()
  entry = entries.Entry((image,), "x.json: image 1", objects=things, **more)
  found = prompts.record(entry, task, problems, labels=labels, encode=encode)
  return found, problems.notes


@pytest.mark.parametrize(
  ("box", "expected", "note"),
  [
    ((20, 150, 60, 230), [20, 150, 60, 200], pixels.CUT),
    ((-3, -5.5, 60, 60), [0, 0, 60, 60], pixels.CUT),
    ((-300, -300, 300, 300), [0, 0, 120, 200], pixels.MOSTLY_OUTSIDE),
    ((20, 190, 60, 270), [20, 190, 60, 200], pixels.MOSTLY_OUTSIDE),
    ((0, 0, 120.02, 200), [0, 0, 120, 200], pixels.CUT),
    ((-0.004, 0, 120.004, 200), [0, 0, 120, 200], None),
  ],
)
def test_boxes_over_the_edge_are_cut(box, expected, note, image):
  found, notes = detect(image, thing((1, 2, 3, 4)), thing(box))
  assert [x["box"] for x in found["objects"]] == [[1, 2, 3, 4], expected]
  assert len(location.parse(found["suffix"], SIZE)) == 2
  assert notes == ({note: (1, "x.json: object 3")} if note else {})
  assert "-0.0" not in json.dumps(found)


@pytest.mark.parametrize(
  ("box", "message"),
  [
    ((30, 20, 10, 60), r"\(30, 20, 10, 60\) is inverted"),
    ((30, 20, 40, 10), "is inverted"),
    ((30, 20, 30, 60), "is without area"),
    ((30, 20, 60, 20.004), "is without area"),
    ((30, 200, 60, 230), "is outside of its image of 120x200 pixels"),
    ((-9, 20, 0, 60), "is outside of its image"),
    ((120, 20, 130, 60), "is outside of its image"),
    ((math.nan, 20, 130, 60), "is not finite"),
    ((0, 20, math.inf, 60), "is not finite"),
    ((0, 0, 1e300, 1e300), None),
  ],
)
@pytest.mark.parametrize("crowd", [False, True])
def test_bad_boxes_take_their_image_out(box, message, crowd, image):
  things = thing((1, 2, 3, 4)), thing(box, crowd=crowd)
  if message is None:
    assert detect(image, *things)[0]["objects"][1]["box"] == [0, 0, 120, 200]
    return
  with pytest.raises(ValueError, match=f"^x.json: object 3: box .*{message}"):
    detect(image, *things)


def test_shares_of_the_sides(image):
  found, _ = detect(image, thing((0.25, 0.05, 0.5, 0.3), shares=True))
  assert found["objects"][0]["box"] == [30, 10, 60, 60]
  assert (found["height"], found["width"]) == SIZE


def test_boxes_thinner_than_a_location_are_written_as_one(tmp_path):
  # A side of 5000 pixels has a location each five.
  size = (5000, 5000)
  Image.new("1", size).save(tmp_path / "a.png")
  boxes = [(10, 10, 11, 40), (4999, 1, 5000, 2), (0, 0, 1, 5000), (2, 2, 9, 9)]
  found, notes = detect(tmp_path / "a.png", *map(thing, boxes))
  assert [tuple(x["box"]) for x in found["objects"]] == boxes
  assert notes == {
    "boxes thinner than a location, written as wide as one": (
      3,
      "x.json: object 3",
    )
  }
  back = location.parse(found["suffix"], size)
  assert not any(x.problem for x in back)
  for x, box in zip(back, boxes, strict=True):
    assert np.abs(np.subtract(x.box, box)).max() < 5000 / 1023


def test_areas_that_say_no_more_than_the_box(image):
  boxes = [(10, 20, 30, 60.5), (10, 20, 130, 60)]
  areas = [809.9, 500, 4800, 4400]
  things = [thing(boxes[i // 2], area=area) for i, area in enumerate(areas)]
  found, _ = detect(image, *things)
  assert [x.get("area") for x in found["objects"]] == [None, 500, None, 4400]


@pytest.mark.parametrize(
  ("label", "message"),
  [
    ("", "the label is empty"),
    (" \n", "the label is empty"),
    ("a;b", 'label "a;b" holds ";", a location or a code, where it would end'),
    ("a <loc0001>", 'label "a <loc0001>" holds ";", a location or a code'),
    ("<seg1", 'label "<seg1" holds ";", a location or a code'),
    ("a\nb", r'label "a\\nb" holds a line break, which ends a prompt'),
    ("a\r\nb", r'label "a\\nb" holds a line break'),
    ("a\ud800", r'label "a\\ud800" holds half of a surrogate pair'),
    ("a<eos>", 'label "a<eos>" holds <eos>, which is a control token'),
    ("y;" * 999, 'label "(y;){30}" holds ";"'),
  ],
)
def test_bad_labels(label, message, image):
  with pytest.raises(ValueError, match=f"^x.json: object 3: {message}"):
    detect(image, thing((1, 2, 3, 4)), thing((1, 2, 3, 4), label))
  # One that no object has is left out instead.
  problems = entries.Problems()
  assert prompts.asked([label, "cat"], ["cat"], problems, "x") == ("cat",)
  ((what, (count, _)),) = problems.notes.items()
  assert what.startswith("labels that no answer can hold and no object has")
  assert count == 1
  # One that an object has is that object's error, and in no prompt either.
  problems = entries.Problems()
  assert prompts.asked([label, "cat"], [label], problems, "x") == ("cat",)
  assert prompts.asked(None, [label, "cat"], problems, "x") == ("cat",)
  assert not problems.notes


def test_labels_that_differ_in_spaces_are_one(image):
  problems = entries.Problems()
  declared = ["red  dog ", "cat", "red dog", " cat", "\tunicorn"]
  found = prompts.asked(declared, ["cat\n", "red dog"], problems, "x.json")
  assert found == ("cat", "red dog", "unicorn")
  assert problems.notes == {
    "labels of one name, which are one": (2, 'x.json: "red dog"')
  }
  written, _ = detect(image, thing((1, 2, 3, 4), "red  dog\n"), labels=found)
  assert written["prefix"] == "detect cat ; red dog ; unicorn"
  assert written["suffix"].endswith("> red dog")
  assert written["objects"][0]["label"] == "red dog"


def test_polygons_are_as_their_boxes(image):
  polygon = [10.004, 20, 60, 20, 60, 60, 10, 60.001]
  shares = [c / SIZE[1 - i % 2] for i, c in enumerate(polygon)]
  wanted = [[10.0, 20.0, 60.0, 20.0, 60.0, 60.0, 10.0, 60.0]]
  box = (20, 10, 60, 60)
  lines = []
  for given in (
    thing(box, mask=[polygon]),
    thing((1 / 6, 0.05, 0.5, 0.3), mask=[shares], shares=True),
  ):
    seen = []

    def encode(masks, seen=seen):
      seen.append(masks)
      return np.tile(np.arange(16), (len(masks), 1))

    found, _ = detect(image, given, task="segment", encode=encode)
    assert found["annotations"][0]["segmentation"] == wanted
    assert found["annotations"][0]["bbox"] == [10, 20, 50, 40]
    assert seen[0].all()
    lines.append(json.dumps(found))
  assert lines[0] == lines[1]


@pytest.mark.parametrize(
  "mask", [5, "polygon", [5], [[1, 2]], [["a"] * 6], [{}]]
)
def test_bad_masks(mask, image):
  with pytest.raises(
    ValueError, match=r"^x.json: object 3: (mask|polygon) "
  ) as e:
    detect(image, thing((1, 2, 30, 40), mask=mask), task="segment")
  assert "\n" not in str(e.value)


def test_masks_thinner_than_a_pixel(image):
  box = (10.6, 20, 11.4, 60)  # both edges round to 11
  mask = {"size": [120, 200], "counts": [120 * 20, 120 * 40, 120 * 140]}
  found, _ = detect(
    image,
    thing(box, mask=mask),
    task="segment",
    encode=lambda masks: np.full((len(masks), 16), 7 * bool(masks.all())),
  )
  (back,) = location.parse(found["suffix"], SIZE)
  assert back.codes == (7,) * 16


def test_several_images(image):
  more = dict(captions=("a",), question="q", answers=("b", "c", "c"))
  entry = entries.Entry((image, image), "x:1", **more)
  problems = entries.Problems()
  assert prompts.record(entry, "caption", problems)["suffix"] == "a"
  assert prompts.record(entry, "vqa", problems)["suffix"] == "c"
  with pytest.raises(ValueError, match="x:1: 2 images, but boxes lie in"):
    prompts.record(entry, "detect", problems)
  entry = entries.Entry((image, image.with_name("b.png")), "x:1", **more)
  with pytest.raises(ValueError, match=r"x:1: .* image .*b\.png"):
    prompts.record(entry, "caption", problems)


@pytest.mark.parametrize("name", ["a\0.png", "\udce9.png", "\ud800" * 200])
def test_names_that_no_file_can_have(name):
  with pytest.raises(
    ValueError, match=r"image 1: missing image, .* can be"
  ) as e:
    detect(pathlib.Path(name))
  str(e.value).encode()
  assert len(str(e.value)) < 500


@pytest.mark.parametrize("task", ["caption", "vqa"])
def test_texts_that_utf_8_cannot_hold(task, image):
  bad = ("fine", "half \ud83d")
  entry = entries.Entry(
    (image,), "x:1", captions=bad, question="q", answers=bad, fields={}
  )
  with pytest.raises(ValueError, match=r"x:1: the text .* half of a surrogate"):
    prompts.record(entry, task, entries.Problems())


def test_control_tokens_are_read_as_in_training(image):
  entry = entries.Entry(
    (image, image),
    "x:1",
    captions=("a cat<eos>", "b"),
    question="<image><image>\nwhy?\n",
    answers=("yes <eos>", "yes"),
  )
  problems = entries.Problems()
  found = prompts.record(entry, "caption", problems)
  assert found["captions"] == ["a cat", "b"] and found["suffix"] == "a cat"
  found = prompts.record(entry, "vqa", problems)
  assert found["prefix"] == "answer en why?" and found["question"] == "why?"
  assert found["answers"] == ["yes", "yes"]
  assert problems.notes == {
    "<eos> taken off a text, which training adds": (2, "x:1"),
    "<image> taken off a text, which training adds": (1, "x:1"),
    "line break taken off a text, which training adds": (1, "x:1"),
  }


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("what is <unk> in HTML", "<unk> stands within the answer"),
    ("<loc100><loc0000><loc0001><loc0002> x", "<loc100> is no piece of the vo"),
    ("<loc0100><loc0001><loc0002> x", "3 locations and 0 codes, expected 4"),
  ],
)
def test_texts_that_training_refuses_are_noted(text, message, image):
  entry = entries.Entry((image,), "x:1", captions=(text,))
  problems = entries.Problems()
  assert prompts.record(entry, "caption", problems)["suffix"] == text
  ((what, (count, first)),) = problems.notes.items()
  assert (what, count) == ("texts that training refuses", 1)
  assert first.startswith(f"x:1: {message}")
  empty = dataclasses.replace(entry, captions=("<eos>",))
  with pytest.raises(
    ValueError, match="x:1: nothing is left of the text '<eos"
  ):
    prompts.record(empty, "caption", problems)


def test_further_fields_that_json_cannot_hold(image):
  deep = []
  for _ in range(9999):
    deep = [deep]
  fields = {
    "kept": [1, None, {"a": "\U0001f600"}],
    "nan": [math.nan],
    "half": "\ud800",
    "bytes": b"1",
    "deep": deep,
  }
  problems = entries.Problems()
  entry = entries.Entry((image,), "x:1", captions=("a",), fields=fields)
  found = prompts.record(entry, "caption", problems)
  assert found.keys() == {"kept", "prefix", "suffix", "captions"}
  assert problems.notes == {
    "further fields left out, which JSON in UTF-8 cannot hold": (
      4,
      'x:1: "nan"',
    )
  }
