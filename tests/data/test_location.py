"""Boxes, labels and codes <-> text."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.data import location, tokenizer
from paligemma.data.location import Object

CODES = tuple((37 * i + 5) % 128 for i in range(16))
CODES_TEXT = "".join(f"<seg{c:03d}>" for c in CODES)
BOX_TEXT = "<loc0093><loc0341><loc0465><loc0682>"  # in elevenths and thirds
BOX = (1.0, 1.0, 5.0, 2.0)
SIZE = (11, 3)
PRIMES = (2, 3, 5, 37, 211, 1021)
cheap = settings(max_examples=100, deadline=None, database=None)


@st.composite
def boxes_in_images(draw):
  """A box of whole pixels, not empty, and the prime size of its image."""
  size = draw(st.sampled_from(PRIMES)), draw(st.sampled_from(PRIMES))
  y0, y1 = sorted(
    draw(st.sets(st.integers(0, size[0]), min_size=2, max_size=2))
  )
  x0, x1 = sorted(
    draw(st.sets(st.integers(0, size[1]), min_size=2, max_size=2))
  )
  return (y0, x0, y1, x1), size


LABELS = st.text(st.sampled_from("cat dog,<>01é\n")).map(str.strip)


@pytest.mark.parametrize(
  ("box", "size", "expected"),
  [
    (BOX, SIZE, BOX_TEXT),
    ((0, 0, 48, 64), (48, 64), "<loc0000><loc0000><loc1023><loc1023>"),
    # 1023 / 4 = 255.75, 1023 / 2 = 511.5, and 1.5 and 2.5: halves to even.
    ((12, 0, 24, 32), (48, 64), "<loc0256><loc0000><loc0512><loc0512>"),
    (
      (1.5, 2.5, 3.5, 4.5),
      (1023, 1023),
      "<loc0002><loc0002><loc0004><loc0004>",
    ),
    # Outside of the image; a line; a point of float32.
    ((-9, -0.1, 99, 3), SIZE, "<loc0000><loc0000><loc1023><loc1023>"),
    ((5, 1, 5, 2), SIZE, "<loc0465><loc0341><loc0465><loc0682>"),
    (np.float32([11, 3, 11, 3]), SIZE, "<loc1023><loc1023><loc1023><loc1023>"),
  ],
)
def test_encode_box(box, size, expected):
  assert location.encode_box(box, size) == expected


@pytest.mark.parametrize(
  ("box", "size", "message"),
  [
    ((1, 2, 3), SIZE, r"box is \(1, 2, 3\), expected 4 finite numbers"),
    ((1, 2, math.nan, 4), SIZE, "expected 4 finite numbers"),
    ((1, 2, math.inf, 4), SIZE, "expected 4 finite numbers"),
    ("1234", SIZE, "box is 1234, expected 4 finite numbers"),
    ((5, 1, 1, 2), SIZE, r"\(5, 1, 1, 2\), .* with y0 <= y1 and x0 <= x1"),
    ((1, 2, 5, 1), SIZE, "with y0 <= y1 and x0 <= x1"),
    (BOX, (0, 3), r"image size is \(0, 3\), expected .* above 0"),
  ],
)
def test_bad_boxes(box, size, message):
  with pytest.raises(ValueError, match=message):
    location.encode_box(box, size)
  with pytest.raises(ValueError, match=message):
    location.to_pixels(box, size)


@pytest.mark.parametrize(
  ("box", "expected"),
  [
    ((0.4, 0.6, 5.5, 2.5), (0, 1, 6, 2)),
    ((-7, -1, 99, 99), (0, 0, 11, 3)),
    ((-7, -5, -2, -1), (0, 0, 0, 0)),
    ((1.6, 1, 2.4, 2), (2, 1, 2, 2)),
  ],
)
def test_to_pixels(box, expected):
  assert location.to_pixels(box, SIZE) == expected


def test_parse_an_object_of_all_parts():
  text = f"{BOX_TEXT}{CODES_TEXT} small cat"
  (found,) = location.parse(text, SIZE)
  assert found == Object(BOX, "small cat", CODES, (0, len(text)))


def test_parse_scales_to_the_size():
  (found,) = location.parse("<loc0001><loc0002><loc1022><loc1023>", (5, 7))
  np.testing.assert_allclose(
    found.box, (5 / 1023, 14 / 1023, 5 * 1022 / 1023, 7), rtol=1e-12
  )


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("", []),
    (" ;; ;\n", []),
    (BOX_TEXT, [(BOX, "", None)]),
    (BOX_TEXT + CODES_TEXT, [(BOX, "", CODES)]),
    ("cat", [(None, "cat", None)]),
    ("cat ; a dog", [(None, "cat", None), (None, "a dog", None)]),
    (f"{BOX_TEXT}cat;{BOX_TEXT}", [(BOX, "cat", None), (BOX, "", None)]),
    (f"Here is {BOX_TEXT} cat\n", [(BOX, "cat", None)]),
    (
      f"{BOX_TEXT} cat {BOX_TEXT} dog",
      [(BOX, "cat", None), (BOX, "dog", None)],
    ),
    (f"{BOX_TEXT} \n{CODES_TEXT}cat", [(BOX, "cat", CODES)]),
    (f"{BOX_TEXT} <eos>", [(BOX, "", None)]),
    (f"{BOX_TEXT} cat <eos><pad>", [(BOX, "cat", None)]),
    ("cat<eos>dog", [(None, "cat", None)]),
    # Boxes in succession: the last one is followed by codes and label.
    (f"{BOX_TEXT * 2}{CODES_TEXT} cat", [(BOX, "", None), (BOX, "cat", CODES)]),
    (
      (BOX_TEXT + CODES_TEXT) * 2 + "cat",
      [(BOX, "", CODES), (BOX, "cat", CODES)],
    ),
  ],
)
def test_parse(text, expected):
  found = location.parse(text, SIZE)
  assert [(o.box, o.label, o.codes) for o in found] == expected
  assert {o.problem for o in found} <= {""}


@pytest.mark.parametrize(
  ("text", "problem"),
  [
    (
      BOX_TEXT[9:],
      "3 locations and 0 codes, expected 4 locations, and 16 codes",
    ),
    (BOX_TEXT + "<loc0001>", "5 locations and 0 codes"),
    (BOX_TEXT + CODES_TEXT[8:], "4 locations and 15 codes"),
    (BOX_TEXT + CODES_TEXT + "<seg001>", "4 locations and 17 codes"),
    (CODES_TEXT, "0 locations and 16 codes"),
    (BOX_TEXT[9:] + "<loc1024>", "<loc1024> is no piece of the vocabulary"),
    (BOX_TEXT[9:] + "<loc12>", "<loc12> is no piece"),
    (BOX_TEXT + CODES_TEXT[8:] + "<seg128>", "<seg128> is no piece"),
    (BOX_TEXT + f"<seg{'9' * 5000}>", "<seg9999"),
  ],
)
def test_malformed_runs_are_reported(text, problem):
  """And what stands around them is read."""
  prefix = f"{BOX_TEXT} dog ; "
  found = location.parse(f"{prefix}{text} cat ; sky", SIZE)
  assert [o.label for o in found] == ["dog", "cat", "sky"]
  assert [bool(o.problem) for o in found] == [False, True, False]
  assert found[1].problem.startswith(problem)
  assert found[1].box is found[1].codes is None
  assert found[1].span == (len(prefix), len(prefix) + len(text) + 4)


@pytest.mark.parametrize(
  "text",
  [
    "<loc0005><loc0001><loc0005><loc0009>",
    "<loc0001><loc0009><loc0005><loc0005>",
  ],
)
def test_a_box_without_area_is_reported_and_kept(text):
  (found,) = location.parse(f"{text} cat", (1023, 1023))
  assert found.problem == "box without area"
  assert found.box == tuple(float(text[i : i + 4]) for i in (4, 13, 22, 31))


def test_span_is_what_an_object_was_read_from():
  text = f" well,  {BOX_TEXT * 2}  cat \n; sky ;{BOX_TEXT} {CODES_TEXT} . "
  spans = [o.span for o in location.parse(text, SIZE)]
  assert [text[start:stop] for start, stop in spans] == [
    BOX_TEXT,
    f"{BOX_TEXT}  cat",
    "sky",
    f"{BOX_TEXT} {CODES_TEXT} .",
  ]


@pytest.mark.parametrize(
  ("thing", "message"),
  [
    (Object(), "neither box nor label"),
    (Object(label=" "), "neither box nor label"),
    (Object(label="cat", codes=CODES), 'object "cat" has codes .* but no box'),
    (Object(BOX, "cat; dog"), 'label "cat; dog" holds ";"'),
    (Object(BOX, "<seg001>"), 'label "<seg001>" holds'),
    (Object(BOX, codes=CODES[1:]), r"expected 16 integers in \[0, 128\)"),
    (Object(BOX, codes=(*CODES[1:], 128)), r", 128\], expected 16 integers"),
    (Object(BOX, codes=(*CODES[1:], -1)), "expected 16 integers"),
    (Object(BOX, codes=(*CODES[1:], 0.5)), "expected 16 integers"),
  ],
)
def test_encode_refuses_what_would_not_come_back(thing, message):
  with pytest.raises(ValueError, match=message):
    location.encode([thing], SIZE)


def test_encode():
  things = [
    Object(BOX, "cat", np.array(CODES)),
    Object(BOX),
    Object(label="sky"),
  ]
  text = location.encode(things, SIZE)
  assert text == f"{BOX_TEXT}{CODES_TEXT} cat ; {BOX_TEXT} ; sky"
  assert location.encode([], SIZE) == ""


def test_pieces_are_ids_of_the_tokenizer(tokenizer):
  ids = tokenizer.encode(location.encode([Object(BOX, "cat", CODES)], SIZE))
  assert ids[:4] == [tokenizer.loc_id(i) for i in (93, 341, 465, 682)]
  assert ids[4:20] == [tokenizer.seg_id(c) for c in CODES]


@cheap
@given(boxes_in_images())
def test_whole_pixels_survive_text(box_and_size):
  box, size = box_and_size
  (found,) = location.parse(location.encode_box(box, size), size)
  assert found.problem == ""
  assert location.to_pixels(found.box, size) == box


@cheap
@given(
  st.lists(
    st.tuples(
      st.none() | boxes_in_images(),
      LABELS,
      st.none() | st.tuples(*16 * [st.integers(0, 127)]),
    ),
    max_size=4,
  )
)
def test_objects_survive_text(parts):
  size = (1021, 1021)
  things = [
    Object(box and box[0], label, codes if box else None)
    for box, label, codes in parts
    if box or label
  ]
  found = location.parse(location.encode(things, size), size)
  assert [o.problem for o in found] == len(things) * [""]
  assert [(o.label, o.codes) for o in found] == [
    (o.label, o.codes) for o in things
  ]
  assert [o.box and location.to_pixels(o.box, size) for o in found] == [
    o.box for o in things
  ]


PIECES = st.sampled_from(
  [*tokenizer.LOC[:3], *tokenizer.SEG[-3:], "<loc9999>", "<seg", ">", " ", ";"]
)


@cheap
@given(st.lists(PIECES | st.text(max_size=3), max_size=60).map("".join))
def test_any_text_is_read(text):
  found = location.parse(text, (5, 7))
  spans = [o.span for o in found]
  assert spans == sorted(spans)
  flat = [i for span in spans for i in span]
  assert flat == sorted(flat)
  assert all(o.box or o.label or o.problem for o in found)
  # Every well-formed piece is in an object.
  for piece in location._PIECE.finditer(text):
    assert any(a <= piece.start() and piece.end() <= b for a, b in spans)
