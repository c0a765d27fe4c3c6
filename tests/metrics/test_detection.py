"""Detection: by hand, and as pycocotools computes it when called directly."""

import contextlib
import functools
import io
import math

import numpy as np
import pytest
from pycocotools import coco as coco_lib
from pycocotools import cocoeval

from paligemma.data import location
from paligemma.data.location import Object
from paligemma.metrics import boxes, detection

SIZE = {"height": 1023, "width": 1023}  # pixels are locations
METRIC = detection.Detection()
CLOSE = functools.partial(pytest.approx, abs=1e-12)  # 1 - 2**-52 there


def loc(*corners):
  return "".join(f"<loc{c:04d}>" for c in corners)


A = loc(0, 0, 100, 100)
B = loc(0, 0, 100, 50)  # half of A
C = loc(500, 500, 600, 700)


def precision(found, truth, **options):
  example = SIZE | {"suffix": truth}
  return METRIC([found], [example], **options)


def test_a_perfect_prediction():
  # 100 x 100, 50 x 50 and 9 x 9 pixels.
  text = (
    f"{A} cat ; {C} dog ; {loc(9, 9, 59, 59)} dog ; {loc(1, 1, 10, 10)} cat"
  )
  names = ["AP", "AP/small", "AP/medium", "AP/large", "AP50", "AP75"]
  counts = {"invalid": 0.0, "total": 4.0, "num": 1.0}
  assert precision(text, text) == CLOSE(dict.fromkeys(names, 1.0) | counts)


def test_by_hand():
  """Two cats; found: one, something else, then the other one, too high.

  Precision is 1 up to recall 1/2, then 2/3. 101 recalls: 0 ... 0.5 are 51.
  """
  truth = f"{A} cat ; {C} cat"
  found = (
    f"{A} cat ; {loc(800, 800, 900, 900)} cat ; {loc(520, 500, 600, 700)} cat"
  )
  scores = precision(found, truth)
  at_50 = (51 + 50 * 2 / 3) / 101
  assert scores["AP50"] == pytest.approx(at_50)
  # The second box has IoU 0.8: it counts at 0.5 ... 0.8, seven of ten.
  assert scores["AP75"] == pytest.approx(at_50)
  assert scores["AP"] == pytest.approx((7 * at_50 + 3 * 51 / 101) / 10)
  assert scores["AP/large"] == pytest.approx(scores["AP"])
  assert "AP/small" not in scores


def test_labels_are_averaged_and_those_not_annotated_left_out():
  truth = f"{A} cat ; {C} dog"
  assert precision(f"{A} cat", truth)["AP"] == CLOSE(0.5)
  assert precision(f"{A} cat ; {C} cow", truth)["AP"] == CLOSE(0.5)
  assert precision(f"{A} cat ; {C} Dog", truth)["AP"] == CLOSE(0.5)
  assert precision("", truth)["AP"] == 0.0


def test_surer_ones_go_first():
  """Two boxes, the second of which is right."""
  found = f"{C} cat ; {A} cat"
  assert precision(found, f"{A} cat")["AP"] == pytest.approx(0.5)
  sure = {"confidences": [[0.3, 0.4]]}
  assert precision(found, f"{A} cat", **sure)["AP"] == CLOSE(1.0)
  assert precision(found, f"{A} cat", confidences=[[0.4, 0.3]])[
    "AP"
  ] == pytest.approx(0.5)


def test_suppression_is_per_label_and_optional():
  # Cats of which each covers half of the other; and a dog in the same place.
  found = f"{A} cat ; {B} cat ; {A} dog"
  truth = f"{B} cat ; {A} dog"
  example = SIZE | {"suffix": truth}
  for nms, kept in ((None, 3), (0.5, 3), (0.49, 2)):
    (row,) = detection.Detection(nms=nms).rows([found], [example])
    assert len(row.found) == kept
    assert row.total == 3
  # By confidence: B is kept and A goes.
  (row,) = detection.Detection(nms=0.4).rows(
    [found], [example], confidences=[[0.1, 0.2, 0.05]]
  )
  assert [(t["label"], t["score"]) for t in row.found] == [
    ("cat", 0.2),
    ("dog", 0.05),
  ]
  assert detection.average_precision([row])["AP"] == CLOSE(1.0)


@pytest.mark.parametrize("nms", [-0.1, 1.5, math.nan])
def test_a_bad_threshold_is_named(nms):
  with pytest.raises(ValueError, match=f"nms is {nms}, expected an IoU"):
    detection.Detection(nms=nms)


@pytest.mark.parametrize(
  ("text", "invalid", "total"),
  [
    ("", 0, 0),
    (f"{A} cat", 0, 1),
    ("no cat", 1, 1),
    (A, 1, 1),
    (f"{A[9:]} cat ; {A} cat", 1, 2),
    (f"{A}{C} cat", 1, 2),
    (f"{loc(5, 5, 5, 9)} cat ; {loc(1, 2, 3, 1024)} cat", 2, 2),
    (f"{A} cat ; {A} cat", 0, 2),
  ],
)
def test_malformed_objects_are_counted_and_left_out(text, invalid, total):
  (row,) = METRIC.rows([text], [SIZE | {"suffix": f"{A} cat"}])
  assert (row.invalid, row.total) == (invalid, total)
  assert len(row.found) <= total - invalid
  scores = METRIC.reduce([row, row])
  assert (scores["invalid"], scores["total"]) == (2 * invalid, 2 * total)


def test_boxes_go_back_to_pixels():
  example = {
    "height": 31,
    "width": 17,
    "suffix": [{"box": (3, 2, 29, 11), "label": "a cat"}],
  }
  text = location.encode([Object((3, 2, 29, 11), "a cat")], (31, 17))
  (row,) = METRIC.rows([text], [example])
  assert row.truth[0]["bbox"] == [2, 3, 9, 26]
  np.testing.assert_allclose(row.found[0]["bbox"], [2, 3, 9, 26], atol=0.04)
  assert METRIC.reduce([row])["AP"] == CLOSE(1.0)


def test_annotations_of_coco():
  """A crowd takes any number of boxes; an area decides on the size."""
  thing = {"box": (0, 0, 100, 100), "label": "cat"}
  crowd = {"box": (0, 0, 1000, 1000), "label": "cat", "iscrowd": 1}
  found = f"{A} cat ; {C} cat ; {loc(700, 0, 800, 100)} cat"
  assert precision(found, [crowd, thing])["AP"] == CLOSE(1.0)
  assert precision(f"{C} cat ; {A} cat", [thing])["AP"] == pytest.approx(0.5)
  null = thing | {"area": None, "iscrowd": None}
  assert precision(found, [crowd, null]) == precision(found, [crowd, thing])
  scores = precision(found, [thing | {"area": 1000}])
  assert scores["AP/small"] == CLOSE(1.0)
  assert "AP/large" not in scores


def test_nothing_annotated():
  scores = precision(f"{A} cat", "")
  assert scores == {"invalid": 0.0, "total": 1.0, "num": 1.0}


def test_a_resample_repeats_images():
  examples = [SIZE | {"suffix": t} for t in (f"{A} cat", f"{C} cat")]
  rows = METRIC.rows([f"{A} cat", ""], examples)
  assert METRIC.reduce(rows)["AP"] == pytest.approx(51 / 101)
  assert METRIC.reduce([rows[0]] * 3)["AP"] == CLOSE(1.0)
  assert METRIC.reduce([rows[1]] * 3)["AP"] == 0.0


def test_nothing_is_printed(capsys):
  precision(f"{A} cat", f"{A} cat")
  assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"height": 0}, '"height" is 0, expected pixels'),
    ({"width": "9"}, "\"width\" is '9', expected pixels"),
    ({"suffix": 7}, '"suffix" is 7, expected a text, or a list of boxes'),
    (
      {"suffix": f"{A} cat ; {A[9:]} dog"},
      r'<loc0100> dog": 3 locations and 0',
    ),
    ({"suffix": "cat"}, 'expected four locations.*"cat": label without box'),
    ({"suffix": A}, "box without label"),
    ({"suffix": f"{loc(1, 1, 1, 2)} cat"}, "box without area"),
    ({"suffix": [7]}, 'object 0 of "suffix" is 7, expected {"box"'),
    (
      {"suffix": [{"box": (0, 0, 1, 1)}]},
      'object 0 .*expected a text as "label"',
    ),
    ({"suffix": [{"label": "a", "box": (1, 0, 1, 1)}]}, r'as "box"\.$'),
    ({"suffix": [{"label": "a", "box": (0, 0, 1)}]}, r'as "box"\.$'),
    ({"suffix": [{"label": "a"}]}, r'as "box"\.$'),
    (
      {"suffix": [{"label": "a", "box": (0, 0, 1, 1), "area": -1}]},
      r'pixels as "area"\.$',
    ),
    (
      {"suffix": [{"label": "a", "box": (0, 0, 1, 1), "iscrowd": 2}]},
      r'0 or 1 as "iscrowd"\.$',
    ),
  ],
)
def test_bad_annotations_are_named(change, message):
  good = SIZE | {"suffix": f"{A} cat"}
  bad = good | {"_where": "v.jsonl:2"} | change
  with pytest.raises(ValueError, match=f"^v.jsonl:2: .*{message}") as error:
    METRIC(["", ""], [good, bad])
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["height", "width", "suffix"])
def test_missing_fields_are_named(key):
  example = SIZE | {"suffix": f"{A} cat"}
  del example[key]
  with pytest.raises(ValueError, match=f'^example 0: no .* under "{key}"'):
    METRIC([""], [example])


@pytest.mark.parametrize("bad", [[], [0.5, 0.5], [math.nan]])
def test_bad_confidences_are_named(bad):
  message = r"^example 0: confidences are .*, expected one .* each of 1 boxes"
  with pytest.raises(ValueError, match=message):
    precision(f"{A} cat", "", confidences=[bad])
  with pytest.raises(ValueError, match="confidences of 2 predictions for 1"):
    precision(f"{A} cat", "", confidences=[[1.0]] * 2)


def directly(predictions, examples, confidences, nms):
  """The summary of pycocotools on the same boxes."""
  labels = ["cat", "dog", "a b", "none"]
  images, annotations, results = [], [], []
  for i, (text, example, sure) in enumerate(
    zip(predictions, examples, confidences, strict=True), start=1
  ):
    images.append({"id": i})
    size = example["height"], example["width"]
    for thing in example["suffix"]:
      y0, x0, y1, x1 = thing["box"]
      annotations.append(
        {
          "id": len(annotations) + 1,
          "image_id": i,
          "category_id": labels.index(thing["label"]) + 1,
          "bbox": [x0, y0, x1 - x0, y1 - y0],
          "area": thing.get("area", (x1 - x0) * (y1 - y0)),
          "iscrowd": thing.get("iscrowd", 0),
        }
      )
    found = [o for o in location.parse(text, size) if o.box]
    for c, label in enumerate(labels, start=1):
      mine = [
        (o.box, s)
        for o, s in zip(found, sure, strict=True)
        if o.label == label and not o.problem
      ]
      if not mine:
        continue
      corners, scores = map(np.array, zip(*mine, strict=True))
      kept = (
        range(len(mine))
        if nms is None
        else (boxes.suppress(corners, scores, nms))
      )
      for k in kept:
        (y0, x0, y1, x1), score = mine[k]
        results.append([i, x0, y0, x1 - x0, y1 - y0, score, c])
  truth = coco_lib.COCO()
  truth.dataset = {
    "images": images,
    "categories": [{"id": c} for c in range(1, len(labels) + 1)],
    "annotations": annotations,
  }
  with contextlib.redirect_stdout(io.StringIO()):
    truth.createIndex()
    evaluation = cocoeval.COCOeval(
      truth, truth.loadRes(np.array(results)), "bbox"
    )
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
  names = ("AP", "AP50", "AP75", "AP/small", "AP/medium", "AP/large")
  return dict(zip(names, evaluation.stats[:6].tolist(), strict=True))


def adversarial(rng, images):
  """Boxes near the annotated ones, twice, elsewhere, and malformed; ties."""
  predictions, examples, confidences = [], [], []
  labels = ["cat", "dog", "a b"]
  for _ in range(images):
    size = rng.integers(40, 900, 2)
    things = []
    for _ in range(rng.integers(0, 7)):
      corner = rng.uniform(0, 0.8, 2) * size
      end = np.minimum(corner + rng.uniform(3, 200, 2), size)
      box = np.concatenate([corner, end]).round(1).tolist()
      things.append({"box": box, "label": rng.choice(labels).item()})
      if rng.random() < 0.1:
        things[-1]["iscrowd"] = 1
      if rng.random() < 0.3:
        things[-1]["area"] = float(rng.uniform(1, 20000))
    texts, sure = [], []
    for thing in [*things, *things[::2], *things[::3]]:
      kind = rng.integers(8)
      box = np.array(thing["box"]) + rng.normal(0, [0, 2, 9][kind % 3], 4)
      ordered = np.concatenate([np.minimum(box[:2], box[2:] - 2), box[2:]])
      label = thing["label"] if kind else rng.choice([*labels, "none"]).item()
      texts.append(
        location.encode([Object(tuple(ordered), label)], tuple(size))
      )
      if kind == 7:
        texts[-1] = texts[-1][9:]
    texts += ["", "cat"][: rng.integers(3)]
    rng.shuffle(texts)
    text = " ; ".join(texts)
    found = [o for o in location.parse(text, tuple(size)) if o.box]
    sure = (rng.integers(1, 9, len(found)) / 8).tolist()
    predictions.append(text)
    confidences.append(sure)
    examples.append(
      {"height": int(size[0]), "width": int(size[1]), "suffix": things}
    )
  return predictions, examples, confidences


@pytest.mark.parametrize(
  ("nms", "images"), [(None, 101), (0.5, 2003), (0.9, 103)]
)
def test_equals_pycocotools(nms, images):
  predictions, examples, confidences = adversarial(
    np.random.default_rng(17), images
  )
  scores = detection.Detection(nms)(
    predictions, examples, confidences=confidences
  )
  assert scores["total"] > 5 * images
  assert images / 7 < scores["invalid"] < scores["total"] / 4
  expected = directly(predictions, examples, confidences, nms)
  for name, value in expected.items():
    assert 0.1 < value < 0.9
    assert scores[name] == pytest.approx(value, abs=1e-12), name


def test_records_that_are_drawn_twice_count_twice():
  """As if there were two images: what matches is computed once."""
  texts = [f"{A} cat ; {C} dog", f"{C} cat", ""]
  truths = [f"{A} cat", f"{C} cat ; {A} dog", f"{B} cat"]
  examples = [SIZE | {"suffix": truth} for truth in truths]
  order = [1, 0, 0, 2, 1, 1]
  rows = METRIC.rows(texts, examples)
  afresh = METRIC.rows(*([x[i] for i in order] for x in (texts, examples)))
  drawn = METRIC.reduce([rows[i] for i in order])
  assert drawn == METRIC.reduce(afresh)
  assert drawn["AP"] != METRIC.reduce(rows)["AP"]


def test_each_label_has_its_own_precision():
  texts, truths = [f"{A} cat", f"{C} cat"], [f"{A} cat", f"{A} cat ; {C} dog"]
  rows = METRIC.rows(texts, [SIZE | {"suffix": truth} for truth in truths])
  found = detection.average_precision_by_label(rows)
  assert list(found) == ["cat", "dog"]
  assert found["dog"]["AP"] == 0
  assert 0 < found["cat"]["AP"] == CLOSE(2 * METRIC.reduce(rows)["AP"])
