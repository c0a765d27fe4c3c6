"""CVAT's shapes, subsets and labels."""

import numpy as np
import pytest

from paligemma.data import masks
from scripts.imports import cvat
from tests.scripts.imports.reading import area, picture, read

BOX = '<box label="cat" xtl="3" ytl="4" xbr="11" ybr="9"'


def write(tmp_path, shapes="", name="a.png", more="", meta=""):
  path = tmp_path / "annotations.xml"
  path.write_text(
    f"<annotations><version>1.1</version><meta>{meta}</meta>\n"
    f'<image id="7" name="{name}" width="30" height="20"{more}>\n{shapes}\n'
    "</image></annotations>"
  )
  return path


def things(tmp_path, shapes):
  ((entry,), _, _) = read(cvat.read, write(tmp_path, shapes))
  assert entry.size == (20, 30)
  return entry.objects


def test_shapes(tmp_path):
  found = things(
    tmp_path,
    f'{BOX}/><polygon label="dog" points="3.00,4.00;11,5;6,9"/>'
    '<ellipse label="cat" cx="10" cy="8" rx="6" ry="2.5"/>'
    '<mask label="cat" rle="1, 2, 1, 3, 2" left="4" top="5" width="3" '
    'height="3"/>',
  )
  assert [thing.label for thing in found] == ["cat", "dog", "cat", "cat"]
  assert (found[0].box, found[0].mask) == ((4, 3, 9, 11), None)
  assert (found[1].box, found[1].mask) == (
    (4, 3, 9, 11),
    [[3, 4, 11, 5, 6, 9]],
  )
  np.testing.assert_allclose(found[2].box, (5.5, 4, 10.5, 16), atol=1e-9)
  np.testing.assert_allclose(area(*found[2].mask), np.pi * 15, rtol=1e-3)
  inside = masks.from_rle(found[3].mask, 20, 30)
  np.testing.assert_array_equal(
    inside[5:8, 4:7], [[0, 1, 1], [0, 1, 1], [1, 0, 0]]
  )
  assert inside.sum() == 5 and found[3].box == (5, 4, 8, 7)
  assert found[0].where.endswith("annotations.xml: image 7: box 0")


def test_what_is_turned_has_the_box_around_it(tmp_path):
  found = things(
    tmp_path,
    '<box label="a" xtl="5" ytl="6" xbr="15" ybr="10" rotation="90"/>'
    '<box label="a" xtl="5" ytl="6" xbr="15" ybr="10" rotation="30"/>'
    '<ellipse label="a" cx="10" cy="8" rx="6" ry="2.5" rotation="90"/>',
  )
  np.testing.assert_allclose(found[0].box, (3, 8, 13, 12), atol=1e-9)
  cos, sin = np.cos(np.pi / 6), 0.5
  x, y = 5 * cos + 2 * sin, 5 * sin + 2 * cos
  np.testing.assert_allclose(
    found[1].box, (8 - y, 10 - x, 8 + y, 10 + x), atol=1e-9
  )
  assert found[1].mask is None
  np.testing.assert_allclose(found[2].box, (2, 7.5, 14, 12.5), atol=1e-9)


def test_turning_is_clockwise(tmp_path):
  (thing,) = things(
    tmp_path,
    '<ellipse label="a" cx="10" cy="8" rx="6" ry="0.1" rotation="45"/>',
  )
  (outline,) = thing.mask
  x, y = outline[0] - 10, outline[1] - 8  # of the end that was to the right
  np.testing.assert_allclose((x, y), (6 / 2**0.5, 6 / 2**0.5))


def test_labels_are_those_of_boxes(tmp_path):
  label = "<label><name>{}</name><type>{}</type></label>"
  named = [("cat", "rectangle"), ("sky", "tag"), ("dog", "any")]
  labels = "".join(label.format(*pair) for pair in named)
  labels += "<label><name>owl</name></label>"
  meta = f"<project><labels>{labels}</labels></project>"
  _, found, _ = read(cvat.read, write(tmp_path, f"{BOX}/>", meta=meta))
  assert found == ("cat", "dog", "owl")
  _, found, _ = read(cvat.read, write(tmp_path, f"{BOX}/>"))
  assert found is None


@pytest.mark.parametrize(
  ("name", "subset", "split"),
  [
    ("a.png", ' subset="Validation"', "val"),
    ("a.png", ' subset="default"', "train"),
    ("a.png", ' subset="night"', "night"),
    ("test/a.png", "", "test"),
    ("test/a.png", ' subset="Train"', "train"),
    ("test_1.png", "", "train"),
  ],
)
def test_splits(name, subset, split, tmp_path):
  ((entry,), _, _) = read(cvat.read, write(tmp_path, "", name, subset))
  assert entry.split == split
  assert entry.objects == ()


@pytest.mark.parametrize("subset", ["a/b", "../a", "..", "a&#10;b"])
def test_subsets_that_can_name_no_file(subset, tmp_path):
  src = write(tmp_path, "", "a.png", f' subset="{subset}"')
  with pytest.raises(ValueError, match=r"image 7: subset .* can name no f"):
    read(cvat.read, src)


def test_where_pictures_lie(tmp_path):
  src = write(tmp_path, "", "x/a.png", ' subset="Train"')

  def found(images=None):
    ((entry,), _, _) = read(cvat.read, tmp_path, images)
    return entry.images[0]

  assert found() == tmp_path / "x" / "a.png"  # which is missing
  for place in ("images/Train/x", "images/x", "x"):
    path = picture(tmp_path / place / "a.png")
    assert found() == path
  assert src.is_file()
  assert found(tmp_path / "y") == tmp_path / "y" / "x" / "a.png"


def test_tags_are_left_out(tmp_path):
  src = write(tmp_path, f'<tag label="night"/>{BOX}/>')
  ((entry,), _, problems) = read(cvat.read, src)
  assert len(entry.objects) == 1
  assert list(problems.notes) == ["tags of whole pictures left out"]


@pytest.mark.parametrize(
  ("shapes", "message"),
  [
    ('<points label="a" points="3,4"/>', "points 0: is no box; expected box"),
    ('<polyline label="a" points="3,4;5,6"/>', "polyline 0: is no box; expe"),
    ('<skeleton label="a"/>', "skeleton 0: is no box; expected box, polygon"),
    ('<polygon label="a" points="3,4;5,6"/>', "a polygon of 2 points, expect"),
    ('<polygon label="a" points="3,4;5;6,7"/>', "polygon 0: expected 2 numb"),
    (f"{BOX[:-7]}/>", 'box 0: <box> has no "ybr"'),
    (f"{BOX.replace('cat', '')}/>", 'box 0: <box> has no "label"'),
    (f"{BOX.replace('11', 'x')}/>", "box 0: expected 4 numbers xtl, ytl, xb"),
    (
      '<mask label="a" rle="1,2" left="0" top="0" width="2" height="2"/>',
      "mask 0: counts of a run-length mask sum to 3, expected 4",
    ),
    (
      '<mask label="a" rle="4" left="0" top="0" width="2" height="2"/>',
      "mask 0: mask is empty",
    ),
  ],
)
def test_bad_shapes(shapes, message, tmp_path):
  src = write(tmp_path, f"{shapes}{BOX}/>")
  with pytest.raises(ValueError) as info:
    read(cvat.read, src)
  assert message in str(info.value)
  assert str(info.value).startswith(f"{src}: image 7: ")
  found, _, problems = read(cvat.read, src, skip=True)
  assert not found and len(problems.messages) == 1


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (
      "<annotations><track id='0' label='cat'/></annotations>",
      'xml: tracks of a video, expected an export as "CVAT for images 1.1"',
    ),
    ("<annotation/>", "xml: no <image>, expected the XML of CVAT for images"),
    ("<annotations>\n<x></annotations>", "xml:2: malformed XML at column 6: m"),
    (
      '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><x>&b;</x>',
      "xml: declares XML entities, expected none",
    ),
  ],
)
def test_bad_files(text, message, tmp_path):
  path = tmp_path / "annotations.xml"
  path.write_text(text)
  with pytest.raises(ValueError) as info:
    read(cvat.read, tmp_path)
  assert message in str(info.value)
