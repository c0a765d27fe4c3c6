import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.checkpoints import safetensors as ours

TENSORS = {
  "b": np.arange(15, dtype=np.float32).reshape(3, 5),
  "a": np.arange(7).astype(ml_dtypes.bfloat16),
  "half": np.arange(6, dtype=np.float16).reshape(2, 3),
  "double": np.array(0.1),
  "empty": np.zeros((0, 3), np.float32),
  "ids": np.arange(3),
  "flags": np.array([True, False, True]),
}


def assert_equal(found, expected):
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    tensor = found[name]
    assert (tensor.shape, tensor.dtype) == (array.shape, array.dtype)
    np.testing.assert_array_equal(tensor[...], array)


def test_reads_what_the_library_writes(tmp_path):
  safetensors.numpy.save_file(TENSORS, tmp_path / "x.safetensors", {"a": "b"})
  assert_equal(ours.open(tmp_path / "x.safetensors"), TENSORS)


def test_the_library_reads_what_is_written(tmp_path):
  path = tmp_path / "x.safetensors"
  ours.save(path, TENSORS, {"format": "pt"})
  found = safetensors.numpy.load_file(path)
  assert found.keys() == TENSORS.keys()
  for name, array in TENSORS.items():
    assert found[name].dtype == array.dtype
    np.testing.assert_array_equal(found[name], array)
  with safetensors.safe_open(path, "np") as file:
    assert file.metadata() == {"format": "pt"}


def test_a_slice_reads_rows(tmp_path):
  ours.save(tmp_path / "x", TENSORS)
  found = ours.open(tmp_path / "x")["b"]
  np.testing.assert_array_equal(found[1:3], TENSORS["b"][1:3])


def test_tensors_are_aligned_and_files_do_not_depend_on_order(tmp_path):
  ours.save(tmp_path / "x", TENSORS)
  ours.save(tmp_path / "y", dict(sorted(TENSORS.items())))
  assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
  for tensor in ours.open(tmp_path / "x").values():
    assert tensor.offset % tensor.dtype.itemsize == 0


def test_fetches_a_tensor_when_its_turn_comes(tmp_path):
  events = []

  class Lazy:
    shape, dtype = (2,), np.dtype(np.float32)

    def __init__(self, name):
      self.name = name

    def __getitem__(self, _):
      events.append(self.name)
      return np.zeros(2, np.float32)

  ours.save(tmp_path / "x", {"a": Lazy("a"), "b": Lazy("b")})
  assert events == ["a", "b"]


def test_refuses_a_dtype_that_it_cannot_write(tmp_path):
  with pytest.raises(ValueError, match="x: c: dtype complex64, expected"):
    ours.save(tmp_path / "x", {"c": np.zeros(1, np.complex64)})


def write(path, header, data=b""):
  if not isinstance(header, bytes):
    header = json.dumps(header).encode()
  path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def entry(dtype="F32", shape=(2,), data_offsets=(0, 8)):
  return {
    "dtype": dtype,
    "shape": list(shape),
    "data_offsets": list(data_offsets),
  }


BAD = {
  "no JSON": (b"{x", 0, "not a safetensors file, or corrupt"),
  "no text": (b"\xff\xfe", 0, "not a safetensors file, or corrupt"),
  "nested": (b"[" * 100_000, 0, "not a safetensors file, or corrupt"),
  "no object": ([], 0, "the header is no JSON object"),
  "twice": (
    b'{"w": %b, "w": %b}' % (2 * (json.dumps(entry()).encode(),)),
    8,
    '"w" stands twice',
  ),
  "metadata": ({"__metadata__": {"a": 1}}, 0, "must map strings to strings"),
  "entry": ({"w": {"dtype": "F32"}}, 0, "w: .* expected"),
  "extra": ({"w": {**entry(), "x": 1}}, 8, "w: .* expected"),
  "name": ({"w\n": entry()}, 8, r"'w\\n': expected a name to print"),
  "dtype": (
    {"w": entry("F33")},
    8,
    "w: dtype 'F33', expected one of: F64, F32",
  ),
  "no dtype": (
    {"w": entry(["F32"])},
    8,
    r"w: dtype \['F32'\], expected one of",
  ),
  "negative": ({"w": entry(shape=(-1, -2))}, 8, "shape .*, expected sizes"),
  "bool": ({"w": entry(shape=(True, 2))}, 8, "shape .*, expected sizes"),
  "float": ({"w": entry(shape=(2.0,))}, 8, "shape .*, expected sizes"),
  "axes": ({"w": entry(shape=65 * (1,))}, 4, "shape .*, expected sizes"),
  "big": ({"w": entry(shape=(0, 2**62), data_offsets=(0, 0))}, 0, "too big"),
  "offsets": ({"w": entry(data_offsets=(0, 4, 8))}, 8, "expected two"),
  "span": ({"w": entry(data_offsets=(0, 4))}, 4, r"span 4 bytes.*\[2\] has 8"),
  "wide": ({"w": entry(data_offsets=(0, 12))}, 12, r"span 12 bytes.*has 8"),
  "backward": ({"w": entry(data_offsets=(8, 0))}, 8, "span -8 bytes"),
  "cut short": ({"w": entry()}, 7, "7 bytes|cut"),
  "to spare": ({"w": entry()}, 9, "bytes to spare"),
  "gap": ({"w": entry(data_offsets=(4, 12))}, 12, "w: gap before"),
  "overlap": (
    {"v": entry(), "w": entry(data_offsets=(4, 12))},
    12,
    "w: overlaps",
  ),
}


@pytest.mark.parametrize(("header", "nbytes", "match"), BAD.values(), ids=BAD)
def test_refuses_a_bad_header_in_one_line(tmp_path, header, nbytes, match):
  path = tmp_path / "bad.safetensors"
  write(path, header, nbytes * b"\0")
  with pytest.raises(ValueError, match=match) as error:
    ours.open(path)
  assert "\n" not in str(error.value)
  assert str(path) in str(error.value)


@pytest.mark.parametrize("content", [b"", b"1234567", b"\xff" * 16])
def test_refuses_a_file_that_is_shorter_than_its_header(tmp_path, content):
  (tmp_path / "x").write_bytes(content)
  with pytest.raises(ValueError, match="x: not a safetensors file, or cut"):
    ours.open(tmp_path / "x")


def test_refuses_what_is_no_file(tmp_path):
  with pytest.raises(ValueError, match=r"none: No such file.*safetensors"):
    ours.open(tmp_path / "none")
  with pytest.raises(ValueError, match="Is a directory, expected a"):
    ours.open(tmp_path)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_file_is_refused_or_read_as_the_library_does(
  tmp_path_factory, data
):
  path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
  good = safetensors.numpy.save(
    {name: TENSORS[name] for name in ("a", "b", "half")}
  )
  header_end = 8 + int.from_bytes(good[:8], "little")
  bad = bytearray(good)
  if data.draw(st.booleans()):
    del bad[data.draw(st.integers(0, len(bad))) :]
  else:
    position = data.draw(st.integers(0, header_end - 1))
    bad[position] = data.draw(st.integers(0, 255))
  path.write_bytes(bad)
  try:
    expected = safetensors.numpy.load_file(path)
  except Exception:
    expected = None
  try:
    found = {name: t[...] for name, t in ours.open(path).items()}
  except ValueError as error:
    assert "\n" not in str(error)
    return  # as strict or stricter: see BAD
  assert expected is not None
  assert found.keys() == expected.keys()
  for name in found:
    assert found[name].dtype == expected[name].dtype
    assert found[name].tobytes() == expected[name].tobytes()
