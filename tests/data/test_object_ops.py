"""From annotations to the text of an answer, and to what is no target of it."""

import io
import pathlib
import pickle
import re

import numpy as np
import pytest
from PIL import Image

from paligemma.data import (
  image_ops,
  location,
  mask_codes,
  masks,
  object_ops,
  preprocess,
  text_ops,
)

GOLDEN = pathlib.Path(__file__).parents[1] / "goldens/mask_codec/mask_codec.npz"
ENCODER = mask_codes.Encoder(GOLDEN)
HEIGHT, WIDTH = 29, 41
SIZE = (HEIGHT, WIDTH)


def encoded(height=HEIGHT, width=WIDTH):
  data = io.BytesIO()
  Image.new("RGB", (width, height)).save(data, "PNG")
  return data.getvalue()


def rng(seed=0):
  return np.random.default_rng(seed)


def example(*things, **more):
  return {
    "image": encoded(),
    "objects": list(things),
    "_where": "a.jsonl:7",
    **more,
  }


def thing(box=(2, 3, 7, 14), label="cat", **more):
  return {"box": box, "label": label, **more}


def several():
  return example(
    thing((20, 3, 25, 14), "dog"),
    thing((2, 30, 7, 40), "cat"),
    thing((2, 3, 17, 9), "cat"),
    thing((8, 1, 9, 2), "bird"),
  )


def boxes(things):
  return [t["box"] for t in things]


def fails(op, example, match):
  with pytest.raises(ValueError, match=match) as info:
    op(example, rng())
  assert str(info.value).startswith("a.jsonl:7: ")
  assert "\n" not in str(info.value)


def tfds(**columns):
  return {"image": encoded(), "objects": columns, "_where": "a.jsonl:7"}


def test_from_tfds():
  """Columns as TFDS 4.9.10 gives them without TensorFlow."""
  relative = np.float32([12.5 / HEIGHT, 7 / WIDTH, 25.25 / HEIGHT, 1])
  columns = {
    "bbox": [
      relative,
      np.float32([0, 0, 1, 0.5]),
      np.float32([0.1, 0, 0.1, 1]),
    ],
    "label": [np.int64(1), np.int64(0), np.int64(0)],
    "area": [np.int64(77), np.int64(3), np.int64(0)],
    "is_crowd": [np.False_, np.True_, np.False_],
  }
  op = object_ops.FromTfds(names=("cat", "dog"))
  found = op(tfds(**columns), rng())
  # Exact: halves of pixels decide to which side masks are cut.
  assert found["objects"] == [
    {
      "box": (12.5, 7, 25.25, 41),
      "label": "dog",
      "iscrowd": 0,
      "area": 77.0,
    }
  ]
  assert (found["height"], found["width"]) == SIZE
  with_crowds = object_ops.FromTfds(("cat", "dog"), crowds=True)
  found = with_crowds(tfds(**columns), rng())["objects"]
  assert [t["label"] for t in found] == ["dog", "cat"]
  assert found[1]["iscrowd"] == 1
  assert op(tfds(bbox=[], label=[]), rng())["objects"] == []


def test_from_tfds_of_ref_coco():
  """Nested sequences come as columns of arrays, texts in them as bytes."""
  inside = np.zeros((HEIGHT, WIDTH, 1), np.uint8)
  inside[3:9, 5:20] = 1
  columns = {
    "bbox": [np.float32([0, 0, 0.5, 0.5]), np.float32([0, 0, 1, 1])],
    "category": [np.int64(4), np.int64(5)],
    "mask": [inside.repeat(3, axis=2) * 255, 1 - inside[..., 0]],
    "iscrowd": [np.False_, np.False_],
    "refs": {
      "id": [np.int32([3, 5]), np.int32([7])],
      "sentence": [
        np.array([b"left caf\xc3\xa9", b"cat"], object),
        np.array([b"dog"], object),
      ],
    },
  }
  raw = tfds(**columns)
  found = object_ops.FromTfds()(raw, rng())
  first, second = found["objects"]
  assert first["sentences"] == ["left café", "cat"]
  assert first["label"] == second["label"] == ""
  np.testing.assert_array_equal(first["mask"], inside[..., 0] == 1)
  np.testing.assert_array_equal(second["mask"], inside[..., 0] == 0)
  refer = object_ops.Refer()
  seen = {refer(found, rng(seed))["sentence"] for seed in range(40)}
  assert seen == {"left café", "cat", "dog"}
  chosen = text_ops.Choice("objects", replace=False)
  after = refer(chosen({**found, "_index": 3, "_epoch": 1}, rng()), rng())
  (left,) = after["objects"]
  assert after["sentence"] in left["sentences"]


def test_from_tfds_errors():
  op = object_ops.FromTfds(("cat",))
  fails(op, tfds(label=[1]), 'expected columns bbox and label under "objects"')
  fails(op, tfds(bbox=[]), 'expected columns bbox and label under "objects"')
  fails(op, {**tfds(), "objects": [3]}, "expected columns bbox and label under")
  fails(
    object_ops.FromTfds(),
    tfds(bbox=[np.float32([0, 0, 1, 1])], mask=[np.ones((3, 5))]),
    r"mask has shape \(3, 5\), expected \(29, 41\), that of the image",
  )
  fails(
    op,
    tfds(bbox=[np.float32([0, 0, 1, 1])], label=[np.int64(3)]),
    "object 0 has label 3, expected it in \\[0, 1\\), as there are names",
  )
  fails(
    object_ops.FromTfds(key="things"),
    tfds(bbox=[]),
    'missing key "things", found image, objects',
  )


def coco(*annotations):
  return {
    "image": encoded(),
    "annotations": list(annotations),
    "_where": "a.jsonl:7",
  }


def test_from_coco():
  square = [7.0, 3.0, 20.0, 3.0, 20.0, 9.0, 7.0, 9.0]
  annotations = (
    {
      "bbox": [7.0, 3.0, 13.0, 6.0],
      "category_id": 18,
      "segmentation": [square],
      "area": 78.0,
      "iscrowd": 0,
    },
    {
      "bbox": [0, 0, 5, 5],
      "category_id": 17,
      "segmentation": {"size": [HEIGHT, WIDTH], "counts": [0, 3, 1186]},
      "iscrowd": 1,
    },
    {"bbox": [3, 3, 0, 5], "category_id": 17, "segmentation": [square]},
  )
  op = object_ops.FromCoco({17: "cat", 18: "dog"}, masks=True)
  found = op(coco(*annotations), rng())
  (dog,) = found["objects"]
  mask = dog.pop("mask")
  assert dog == thing((3, 7, 9, 20), "dog", area=78.0, iscrowd=0)
  assert masks.bounding_box(mask) == (3, 7, 9, 20)
  assert (found["height"], found["width"]) == SIZE
  every = object_ops.FromCoco({17: "cat", 18: "dog"}, masks=True, crowds=True)
  found = every(coco(*annotations), rng())["objects"]
  assert [t["label"] for t in found] == ["dog", "cat"]
  assert found[1]["mask"].sum() == 3
  text = {"bbox": [0, 0, 5, 5], "category_id": "cat"}
  assert object_ops.FromCoco()(coco(text), rng())["objects"] == [
    thing((0, 0, 5, 5), "cat")
  ]


@pytest.mark.parametrize(
  ("annotation", "message"),
  [
    ({"category_id": 17}, r"is \{'cat.*: KeyError 'bbox'$"),
    ({"bbox": [1, 2, 3], "category_id": 17}, r"is \{'bbox.*: not enough val"),
    ({"bbox": [0, 0, 5, 5], "category_id": 3}, r"is \{'bbox.*: KeyError 3$"),
    (7, r'is 7, expected "bbox" \[x, y, width, height\] and "category_id": '),
  ],
)
def test_from_coco_errors(annotation, message):
  good = {"bbox": [0, 0, 5, 5], "category_id": 17}
  fails(
    object_ops.FromCoco({17: "cat"}),
    coco(good, annotation),
    f'annotation 1 of "annotations" {message}',
  )


def test_keep_objects():
  assert object_ops.KeepObjects()(several(), rng()) == several()
  kept = object_ops.KeepObjects(("cat", "bird"), min_side=6)(several(), rng())
  assert boxes(kept["objects"]) == [(2, 3, 17, 9)]


def written(op, example, seed=0):
  return op(example, rng(seed))["suffix"]


def test_a_thin_box_has_an_area():
  box = (3, 7, 20, 7.01)
  things = [{"box": box, "label": "cat"}]
  found = written(
    object_ops.WriteObjects("given"), several() | {"objects": things}
  )
  assert found == location.encode([location.Object(box, "cat")], SIZE)
  assert not location.has_flat_box(found)


def test_write_objects_in_order():
  raw = several()
  found = written(object_ops.WriteObjects("given"), raw)
  expected = [location.Object(t["box"], t["label"]) for t in raw["objects"]]
  assert found == location.encode(expected, SIZE)
  read = location.parse(found, SIZE)
  assert [o.label for o in read] == ["dog", "cat", "cat", "bird"]
  for o, t in zip(read, raw["objects"], strict=True):
    np.testing.assert_allclose(o.box, t["box"], atol=0.5 * WIDTH / 1023)
  found = written(object_ops.WriteObjects("sorted"), raw)
  labels = [o.label for o in location.parse(found, SIZE)]
  assert labels == ["cat", "cat", "bird", "dog"]
  assert location.parse(found, SIZE)[0].box[1] < 10  # the left one of the cats
  limited = written(object_ops.WriteObjects("sorted", limit=2), raw)
  assert found.startswith(limited + " ; ")
  assert written(object_ops.WriteObjects(), example()) == ""
  assert raw == several()


def test_write_objects_on_a_coarse_ruler():
  raw = example(thing((2, 3, 7, 14)), thing((0, 20, HEIGHT, 20.5)))
  found = written(object_ops.WriteObjects("given", steps=4), raw)
  # 2 and 7 of 29 are 0.3 and 1.0 quarters; the second box is less than one.
  assert [o.box for o in location.parse(found, SIZE)] == [
    pytest.approx((0, 0, HEIGHT / 4, WIDTH / 4), abs=0.03),
    pytest.approx((0, WIDTH / 4, HEIGHT, WIDTH / 2), abs=0.03),
  ]
  fine = written(object_ops.WriteObjects("given", steps=1023), raw)
  assert fine == written(object_ops.WriteObjects("given"), raw)


def test_write_objects_in_random_order():
  op = object_ops.WriteObjects()
  orders = {written(op, several(), seed) for seed in range(200)}
  assert len(orders) == 24
  assert len({" ; ".join(sorted(o.split(" ; "))) for o in orders}) == 1
  assert written(op, several(), 3) == written(op, several(), 3)


def test_write_objects_follows_the_image():
  raw = example(thing((0, 0, HEIGHT, 10)), image=encoded(HEIGHT * 3, WIDTH))
  third = written(object_ops.WriteObjects(), raw)
  assert third == "<loc0000><loc0000><loc0341><loc0250> cat"
  crop = image_ops.RandomCrop(SIZE, min_visible=0)
  pixels = crop({**raw, "objects": [thing((0, 0, 3 * HEIGHT, 10))]}, rng())
  whole = written(object_ops.WriteObjects(), pixels)
  assert whole == "<loc0000><loc0000><loc1023><loc0250> cat"


def masked(box, label="cat"):
  mask = np.zeros(SIZE, bool)
  y0, x0, y1, x1 = np.rint(box).astype(int)
  mask[y0:y1, x0:x1] = rng(y0).random((y1 - y0, x1 - x0)) < 0.6
  return thing(box, label, mask=mask)


def test_write_objects_with_masks():
  raw = example(masked((2, 3, 17, 9)), masked((8.4, 11, 28.6, 40), "dog"))
  found = written(object_ops.WriteObjects("given", ENCODER), raw)
  for o, t in zip(location.parse(found, SIZE), raw["objects"], strict=True):
    assert o.label == t["label"]
    assert o.codes == ENCODER(t["mask"], t["box"])
  raw["objects"].append(thing())
  fails(
    object_ops.WriteObjects("given", ENCODER),
    raw,
    'object "cat" has no mask to encode',
  )
  # A thin box has the codes of its row of pixels, one without height none.
  thin = masked((8, 11, 20, 40)) | {"box": (8.1, 11, 8.3, 40)}
  (found,) = location.parse(
    written(object_ops.WriteObjects("given", ENCODER), example(thin)), SIZE
  )
  assert found.codes == ENCODER(thin["mask"], (8, 11, 9, 40))
  flat = thin | {"box": (8.1, 11, 8.1, 40)}
  fails(
    object_ops.WriteObjects("given", ENCODER), example(flat), "covers no pixel"
  )


def test_write_objects_errors():
  with pytest.raises(ValueError, match=r'order of objects "radnom".*"random"'):
    object_ops.WriteObjects("radnom")
  fails(
    object_ops.WriteObjects(),
    example(thing(label="a ; b")),
    'label "a ; b" holds ";"',
  )
  fails(object_ops.WriteObjects(), {**example(), "objects": 3}, "expected a li")
  fails(
    object_ops.WriteObjects(),
    example(thing(), suffix="<loc0001>" * 4 + "<seg001>" * 16 + " cat"),
    "the answer has codes of masks, which WriteObjects would leave out; give it"
    " masks=mask_codes.Encoder",
  )


def test_segment():
  box = (8.4, 11, 28.6, 40)
  raw = example(masked(box))
  after = object_ops.Segment(ENCODER)(raw, rng())
  locs = "".join(
    f"<loc{round(1023 * corner / side):04d}>"
    for corner, side in zip(box, SIZE * 2, strict=True)
  )
  codes = "".join(
    f"<seg{c:03d}>" for c in ENCODER(raw["objects"][0]["mask"], box)
  )
  assert after["suffix"] == locs + codes
  assert after["box"] == box
  assert after["mask"] is raw["objects"][0]["mask"]
  flipped = image_ops.Flip(1)(raw, rng())
  after = object_ops.Segment(ENCODER)(flipped, rng())
  mirrored = raw["objects"][0]["mask"][:, ::-1]
  (read,) = location.parse(after["suffix"], SIZE)
  assert read.codes == ENCODER(mirrored, (8.4, 1, 28.6, 30))
  assert read.codes != location.parse(locs + codes, SIZE)[0].codes


def test_segment_and_refer_errors():
  two = example(masked((1, 1, 5, 5)), masked((1, 1, 6, 6)))
  for raw, count in ((two, 2), (example(), 0), (example(thing()), 1)):
    fails(
      object_ops.Segment(ENCODER),
      raw,
      f"found {count} objects, expected one, with a mask: Refer leaves one",
    )
  fails(object_ops.Refer(), two, "no object has sentences, expected them as")


def test_detect_prompt():
  op = object_ops.DetectPrompt()
  prompts = {op(several(), rng(seed))["prefix"] for seed in range(100)}
  assert len(prompts) == 6
  assert "detect bird ; cat ; dog" in prompts
  names = ("cat", "cow", "fox", "hen")
  op = object_ops.DetectPrompt(names, negatives=2, verb="segment")
  asked = [op(several(), rng(seed))["prefix"] for seed in range(100)]
  for prompt in asked:
    labels = re.fullmatch("segment (.*)", prompt)[1].split(" ; ")
    assert len(labels) == len(set(labels)) == 5
    assert {"bird", "cat", "dog"} < set(labels) <= {"bird", "dog", *names}
  # Those that are there have no place of their own.
  assert (
    len(
      {
        prompt.split(" ; ").index("dog")
        for prompt in asked
        if " ; dog ; " in prompt
      }
    )
    == 3
  )
  op = object_ops.DetectPrompt(names)
  empty = {op(example(), rng(seed))["prefix"] for seed in range(50)}
  assert empty == {f"detect {name}" for name in names}
  noisy = example(thing(), thing(label="noise", noise=True))
  assert object_ops.DetectPrompt()(noisy, rng())["prefix"] == "detect cat"
  fails(object_ops.DetectPrompt(), example(), "no object has a label; give nam")


def test_noise_objects():
  op = object_ops.NoiseObjects(total=13)
  raw = several()
  near, same_size = 0, 0
  for seed in range(100):
    things = op(raw, rng(seed))["objects"]
    assert things[:4] == raw["objects"]
    assert len(things) == 13
    for noise in things[4:]:
      assert (noise["label"], noise["noise"]) == ("noise", True)
      y0, x0, y1, x1 = noise["box"]
      assert 0 <= y0 < y1 <= HEIGHT
      assert 0 <= x0 < x1 <= WIDTH
      for real in boxes(raw["objects"]):
        sides = np.subtract(real[2:], real[:2])
        limit = 0.1 * np.tile(sides, 2) + 1e-9
        near += (np.abs(np.subtract(noise["box"], real)) <= limit).all()
        same_size += np.allclose((y1 - y0, x1 - x0), sides)
  # Of 9 a half are copies on average, a quarter shifted, but for the clipped.
  assert 0.4 < near / 900 < 0.6
  assert 0.1 < same_size / 900 < 0.3
  alone = op(example(), rng())["objects"]
  assert len(alone) == 13
  assert all(t["noise"] for t in alone)
  assert object_ops.NoiseObjects(3)(raw, rng())["objects"] == raw["objects"]


def test_noise_is_written_last_and_without_targets():
  noisy = object_ops.NoiseObjects(7, label="junk")(several(), rng())
  noisy["objects"] = noisy["objects"][::-1]
  after = object_ops.WriteObjects()(noisy, rng())
  read = location.parse(after["suffix"], SIZE)
  labels = [o.label for o in read]
  assert labels[4:] == ["junk"] * 3
  assert "junk" not in labels[:4]
  spans = [after["suffix"][a:b] for a, b in after["unsupervised"]]
  assert [
    re.fullmatch("(<loc[0-9]{4}>){4}", span)[0] for span in spans
  ] == spans
  starts = [a for a, _ in after["unsupervised"]]
  assert starts == [o.span[0] for o in read[4:]]
  assert "unsupervised" not in object_ops.WriteObjects()(several(), rng())
  limited = object_ops.WriteObjects(limit=5)(noisy, rng())
  assert len(limited["unsupervised"]) == 1


@pytest.mark.parametrize(
  "op",
  [
    object_ops.KeepObjects(),
    object_ops.WriteObjects(masks=ENCODER),
    object_ops.DetectPrompt(),
    object_ops.NoiseObjects(7),
  ],
  ids=lambda op: type(op).__name__,
)
def test_pickle(op):
  raw = example(masked((2, 3, 17, 9)), masked((8, 11, 20, 40), "dog"))
  copy = pickle.loads(pickle.dumps(op))
  for seed in range(3):
    ours, theirs = op(raw, rng(seed)), copy(raw, rng(seed))
    for key in ("prefix", "suffix"):
      assert ours.get(key) == theirs.get(key)
    assert boxes(ours["objects"]) == boxes(theirs["objects"])


def test_locations_of_noise_are_no_targets(tokenizer):
  """From objects to the mask of the loss."""
  ops = (
    object_ops.NoiseObjects(6),
    object_ops.WriteObjects("given"),
    text_ops.Format("detect"),
  )
  rows = preprocess.Preprocess(tokenizer, 5, 97, train=True, ops=ops)
  row = rows(several(), rng())
  raw = several()
  for op in ops[:2]:
    raw = op(raw, rng())
  real = raw["suffix"][: raw["unsupervised"][0][0]]
  label, separator = map(tokenizer.encode, (" noise", " ; "))
  expected = tokenizer.encode(real) + label + separator + label
  targets = row["text"][row["mask_loss"] == 1].tolist()
  assert targets == [*expected, tokenizer.eos_id]
