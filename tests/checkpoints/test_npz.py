"""What is saved comes back, and every bad file ends in one clear line."""

import contextlib
import re
import typing
import zipfile

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from paligemma.checkpoints import leaves, npz

RNG = np.random.default_rng(0)
FLAT = {
  "img/head/bias": RNG.normal(size=(3,)).astype(np.float32),
  "img/pos_embedding": RNG.normal(size=(1, 5, 7)).astype(ml_dtypes.bfloat16),
  "llm/final_norm/scale": RNG.normal(size=(2,)).astype(np.float16),
}


def assert_same(found, expected):
  assert found.keys() == expected.keys()
  for name in expected:
    assert found[name].dtype == expected[name].dtype, name
    np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.fixture
def path(tmp_path):
  npz.save(tmp_path / "a.npz", FLAT)
  return tmp_path / "a.npz"


def test_saved_then_loaded_is_itself(path):
  assert_same(npz.load(path), FLAT)
  assert_same(npz.load(str(path)), FLAT)


def test_file_is_what_big_vision_reads(path):
  with np.load(path) as file:  # allow_pickle is off by default
    assert sorted(file) == [f"params/{name}" for name in FLAT]
    bias = file["params/img/head/bias"]
    position = file["params/img/pos_embedding"]
  np.testing.assert_array_equal(bias, FLAT["img/head/bias"])
  assert position.dtype == np.dtype("V2")
  np.testing.assert_array_equal(
    position.view(ml_dtypes.bfloat16), FLAT["img/pos_embedding"]
  )


def test_a_file_of_numpy_without_prefix_loads(tmp_path):
  np.savez(tmp_path / "b.npz", **FLAT)
  assert_same(npz.load(tmp_path / "b.npz"), FLAT)
  np.savez_compressed(tmp_path / "c.npz", **FLAT)
  assert_same(npz.load(tmp_path / "c.npz"), FLAT)


def test_only_params_of_a_training_checkpoint(tmp_path):
  np.savez(tmp_path / "b.npz", **{"params/w": np.ones(2), "opt/w": np.ones(3)})
  assert list(npz.load(tmp_path / "b.npz")) == ["w"]


def test_cast_while_saving(tmp_path):
  npz.save(tmp_path / "b.npz", FLAT, dtype=ml_dtypes.bfloat16)
  expected = {n: x.astype(ml_dtypes.bfloat16) for n, x in FLAT.items()}
  assert_same(npz.load(tmp_path / "b.npz"), expected)


def test_jax_arrays_from_a_generator(tmp_path):
  pairs = ((name, jnp.asarray(x)) for name, x in FLAT.items())
  npz.save(tmp_path / "b.npz", pairs)
  assert_same(npz.load(tmp_path / "b.npz"), FLAT)


def test_views_and_scalars(tmp_path):
  flat = {
    "scalar": np.asarray(3, ml_dtypes.bfloat16),
    "transposed": FLAT["img/pos_embedding"].T,
  }
  npz.save(tmp_path / "b.npz", flat)
  assert_same(npz.load(tmp_path / "b.npz"), flat)


def test_subtree(path):
  image = {
    name.removeprefix("img/"): x
    for name, x in FLAT.items()
    if name.startswith("img/")
  }
  assert_same(npz.load(f"{path}:img"), image)
  assert list(npz.load(f"{path}:img/head")) == ["bias"]
  message = 'nothing under "imgs/", expected one of: img, llm. .*"img"'
  with pytest.raises(ValueError, match=message):
    npz.load(f"{path}:imgs")


def test_a_scheme_is_no_subtree():
  assert npz._PATH.fullmatch("gs://bucket/a.npz")["subtree"] is None
  match = npz._PATH.fullmatch("gs://bucket/a.npz:img/head")
  assert match["file"] == "gs://bucket/a.npz"
  assert match["subtree"] == "img/head"


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_open_reads_headers_alone(path, write):
  large = RNG.integers(
    0, 2**31, 5003
  )  # with the header alone zipfile reads 4 K
  write(path, **{**FLAT, "llm/final_norm/scale": large})
  with zipfile.ZipFile(path) as archive:
    member = archive.infolist()[-1]
  content = bytearray(path.read_bytes())
  content[member.header_offset + member.compress_size] ^= 1
  path.write_bytes(content)
  found = npz.open(path).leaves
  for name, array in FLAT.items():
    if name != "llm/final_norm/scale":
      assert found[name].shape == array.shape
      found[name].read()
  assert found["llm/final_norm/scale"].shape == large.shape
  with pytest.raises(ValueError, match=r"llm/final_norm/scale: .*corrupt"):
    found["llm/final_norm/scale"].read()


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_blocks_and_parts(path, write, monkeypatch):
  array = RNG.normal(size=(11, 7)).astype(np.float32)
  write(path, w=array)
  monkeypatch.setattr(leaves, "BLOCK_BYTES", 3 * 7 * 4)
  leaf = npz.open(path).leaves["w"]
  np.testing.assert_array_equal(leaf.read(), array)
  half = leaf.read(np.float16)
  np.testing.assert_array_equal(half, array.astype(np.float16))
  for part in [(slice(5, 11), slice(2, 3)), (slice(1, 4), slice(0, 7))]:
    np.testing.assert_array_equal(leaf.read(index=part), array[part])


def test_equal_arrays_give_equal_files(path, tmp_path):
  npz.save(tmp_path / "b.npz", FLAT)
  assert path.read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_fingerprint_names_the_contents(path, tmp_path):
  first = npz.fingerprint(path)
  assert re.fullmatch("sha256:[0-9a-f]{64}", first)
  # Another order, no prefix, written by NumPy: the same arrays.
  position = FLAT["img/pos_embedding"].view("V2")
  other = FLAT | {"img/pos_embedding": position}
  np.savez(tmp_path / "b.npz", **dict(reversed(other.items())))
  assert npz.fingerprint(tmp_path / "b.npz") == first
  changed = {**FLAT, "img/head/bias": FLAT["img/head/bias"] + 1}
  npz.save(tmp_path / "c.npz", changed)
  assert npz.fingerprint(tmp_path / "c.npz") != first
  renamed = {f"{name}2": x for name, x in FLAT.items()}
  npz.save(tmp_path / "d.npz", renamed)
  assert npz.fingerprint(tmp_path / "d.npz") != first


def test_save_that_fails_leaves_the_earlier_file(path):
  def pairs():
    yield "img/head/bias", np.zeros(3)
    raise RuntimeError("killed")

  with pytest.raises(RuntimeError, match="killed"):
    npz.save(path, pairs())
  assert_same(npz.load(path), FLAT)
  assert [p.name for p in path.parent.iterdir()] == ["a.npz"]


def test_save_refuses_what_cannot_come_back(tmp_path):
  with pytest.raises(ValueError, match="w: dtype object, expected bfloat16"):
    npz.save(tmp_path / "b.npz", {"w": np.array([None])})
  assert not list(tmp_path.iterdir())


def test_missing_file(tmp_path):
  message = r"b\.npz: No such file or directory, expected an npz"
  with pytest.raises(ValueError, match=message):
    npz.load(tmp_path / "b.npz")
  with pytest.raises(ValueError, match="Is a directory, expected an npz"):
    npz.load(tmp_path)


def test_pickled_arrays_are_refused(tmp_path):
  np.savez(tmp_path / "b.npz", w=np.array([{"a": 1}], dtype=object))
  with pytest.raises(ValueError, match=r"b\.npz: w: pickled objects are refus"):
    npz.load(tmp_path / "b.npz")


def test_cut_short(path):
  path.write_bytes(path.read_bytes()[:-40])
  with pytest.raises(
    ValueError, match=r"a\.npz: not an npz file, or corr"
  ) as e:
    npz.load(path)
  assert "\n" not in str(e.value)


def test_corrupt_data(path):
  corrupt(path, FLAT["img/head/bias"].tobytes())
  with pytest.raises(ValueError, match=r"img/head/bias: .*corrupt.*CRC-32"):
    npz.load(path)


def test_whatever_byte_is_broken(path, tmp_path):
  good = path.read_bytes()
  rng = np.random.default_rng(0)
  for position in rng.choice(len(good), 211, replace=False):
    bad = bytearray(good)
    bad[position] ^= 0xFF
    (tmp_path / "b.npz").write_bytes(bad)
    with contextlib.suppress(ValueError):  # dates and flags may do no harm
      npz.load(tmp_path / "b.npz")
    (tmp_path / "b.npz").write_bytes(good[:position])
    with pytest.raises(ValueError, match=r"b\.npz: "):
      npz.load(tmp_path / "b.npz")


def corrupt(path, data):
  """Flips one bit of these bytes in the file."""
  content = bytearray(path.read_bytes())
  content[content.index(data)] ^= 1
  path.write_bytes(content)


def test_a_header_without_its_brace(tmp_path):
  path = tmp_path / "a.npz"
  header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), \n"
  array = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("w.npy", array + b"1234")
  with pytest.raises(ValueError, match=r"a.npz: w: not an npz file, or"):
    npz.open(path)


def test_not_an_npz(tmp_path):
  (tmp_path / "b.npz").write_text("no zip")
  with pytest.raises(ValueError, match="not an npz file"):
    npz.load(tmp_path / "b.npz")
  with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
    archive.writestr("readme.txt", "hello")
  with pytest.raises(
    ValueError, match=r'"readme\.txt" in it is no \.npy array'
  ):
    npz.load(tmp_path / "c.zip")
  with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
    archive.writestr("w.npy", "hello, no array")
  with pytest.raises(ValueError, match=r"w: not an npz file.*magic string"):
    npz.load(tmp_path / "d.zip")
  np.savez(tmp_path / "e.npz")
  with pytest.raises(ValueError, match="holds no array"):
    npz.load(tmp_path / "e.npz")


class TestSettings:
  STATED: typing.ClassVar = dict(
    img={"posemb": "learn", "width": 7},
    llm={"sliding_window": 5},
    metadata={"image_token_id": 3, "chat_template": "\u00e9\n"},
    compute_dtype="bfloat16",
  )

  def test_come_back(self, tmp_path):
    npz.save(tmp_path / "a.npz", {"a": np.ones(3)}, **self.STATED)
    found = npz.open(tmp_path / "a.npz")
    assert found.img == {"posemb": "learn"}  # shapes tell the width
    assert found.llm == self.STATED["llm"]
    assert found.metadata == self.STATED["metadata"]
    assert found.compute_dtype == "bfloat16"
    with np.load(tmp_path / "a.npz") as other:
      assert other.files == ["params/a"]

  def test_are_none_of_the_contents(self, tmp_path):
    npz.save(tmp_path / "a.npz", {"a": np.ones(3)}, **self.STATED)
    npz.save(tmp_path / "b.npz", {"a": np.ones(3)})
    a, b = (npz.fingerprint(tmp_path / f"{x}.npz") for x in "ab")
    assert a == b
    assert npz.open(tmp_path / "b.npz").metadata == {}

  def test_a_comment_of_others_is_let_be(self, tmp_path):
    npz.save(tmp_path / "a.npz", {"a": np.ones(3)})
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
      archive.comment = b"made on a Tuesday"
    assert npz.open(tmp_path / "a.npz").llm == {}

  @pytest.mark.parametrize(
    ("comment", "message"),
    [
      (b"{", "comment: not an npz file, or corrupt"),
      (b"[]", r"comment: .*\(expected a JSON object\)"),
      (b"[" * 60_000, r"comment: .*\(nested too deeply\)"),
      (b"\xff", "comment: not an npz file, or corrupt"),
      (b'{"img": {}, "llm": {}}', "comment: .*expected objects"),
      (
        b'{"img": {}, "llm": {}, "metadata": {"a": 1}}',
        'unknown metadata "a"',
      ),
      (
        b'{"img": {}, "llm": {}, "metadata": {}, "dtype": "int8"}',
        "dtype is 'int8', expected one of",
      ),
      (
        b'{"img": {}, "llm": {}, "metadata": {"image_token_id": -1}}',
        "image_token_id is -1, expected a size",
      ),
      (
        b'{"img": {}, "llm": {"norm_eps": "x"}, "metadata": {}}',
        "norm_eps is 'x', expected a number",
      ),
    ],
  )
  def test_damage(self, tmp_path, comment, message):
    npz.save(tmp_path / "a.npz", {"a": np.ones(3)})
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
      archive.comment = b"paligemma " + comment
    with pytest.raises(ValueError, match=rf"a\.npz: {message}|{message}") as e:
      npz.open(tmp_path / "a.npz")
    assert len(str(e.value).splitlines()) == 1

  def test_too_long(self, tmp_path):
    metadata = {"chat_template": "x" * 70_000}
    with pytest.raises(
      ValueError, match=r"take 70[0-9]{3} bytes, an npz holds"
    ):
      npz.save(tmp_path / "a.npz", {"a": np.ones(3)}, metadata=metadata)
    assert not list(tmp_path.iterdir())
