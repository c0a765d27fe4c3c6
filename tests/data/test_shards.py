"""A packed JSONL is the JSONL: its examples, its splits, its batches."""

import dataclasses
import io
import itertools
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from paligemma.data import (
  batches,
  image_ops,
  preprocess,
  shards,
  sources,
  text_ops,
  tokenizer,
)
from scripts import pack

COUNT = 23


def png(seed):
  rng = np.random.default_rng(seed)
  file = io.BytesIO()
  pixels = rng.integers(0, 256, (150, 170, 3), np.uint8)  # 77 KB
  Image.fromarray(pixels).save(file, "PNG")
  return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """With 00.png to 22.png, of which 05 is a copy of 20; data.jsonl; packed."""
  path = tmp_path_factory.mktemp("data")
  lines = []
  for i in range(COUNT):
    (path / f"{i:02}.png").write_bytes(png(20 if i == 5 else i))
    image = f"{i:02}.png"
    fields = {"image": [image] * 2 if i == 3 else image, "é\n": i / 3}
    lines.append(json.dumps(fields, ensure_ascii=i % 2 == 0) + "\r")
  lines.insert(7, "  ")
  text = "\ufeff" + "\n".join(lines)
  (path / "data.jsonl").write_bytes(text.encode())
  assert pack.pack(path / "data.jsonl", path / "packed", shard_size=1) == (
    COUNT,
    2,
  )
  return path


def without_where(example):
  return {key: value for key, value in example.items() if key != "_where"}


def same(jsonl, packed):
  assert len(jsonl) == len(packed)
  for i in range(len(jsonl)):
    assert without_where(jsonl[i]) == without_where(packed[i])
  for a, b in zip(jsonl.without_images(), packed.without_images(), strict=True):
    assert without_where(a) == without_where(b)


def test_the_examples_are_those_of_the_jsonl(folder):
  packed = sources.make("jsonl", path=folder / "packed")
  same(sources.Jsonl(folder / "data.jsonl"), packed)
  assert packed[4]["_where"] == f"{folder}/packed/examples.jsonl:5"
  assert packed.frames() == 0
  assert {path.name for path in (folder / "packed").iterdir()} == {
    *("00000.array_record", "00001.array_record"),
    *("examples.jsonl", "index.json"),
  }
  assert len(pickle.dumps(packed)) < 5000
  same(packed, pickle.loads(pickle.dumps(packed)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("part", ["train", "val"])
def test_the_parts_are_those_of_the_jsonl(folder, part, seed):
  split = {"val_share": 0.2, "part": part, "seed": seed}
  jsonl = sources.make("jsonl", path=folder / "data.jsonl", **split)
  same(jsonl, sources.make("jsonl", path=folder / "packed", **split))
  # Copies are in one part, though no file of an image is read.
  names = {str(jsonl[i]["_image_path"]) for i in range(len(jsonl))}
  assert ("05.png" in names) == ("20.png" in names)


def test_training_reads_the_same_batches(folder):
  """In the same order, and after a resumption, bit for bit."""
  tok = tokenizer.Tokenizer("paligemma/assets/tiny_tokenizer.model")
  through = preprocess.Preprocess(tok, res=28, text_len=8, train=True)
  crop = image_ops.InceptionCrop()

  def batches_of(name):
    source = sources.make("jsonl", path=folder / name, slice="[4:]")
    ops = (crop, text_ops.Format("what", "none"))
    prepare = dataclasses.replace(through, ops=ops)
    return batches.train([(source, 1)], prepare, batch_size=4, seed=5)

  jsonl, packed = batches_of("data.jsonl"), batches_of("packed")
  for a, b in itertools.islice(zip(jsonl, packed, strict=True), 7):
    for key in a:
      np.testing.assert_array_equal(a[key], b[key])
  assert jsonl.get_state() == packed.get_state()
  resumed = batches_of("packed")
  resumed.set_state(jsonl.get_state())
  np.testing.assert_array_equal(next(jsonl)["image"], next(resumed)["image"])
  for each in (jsonl, packed, resumed):
    each.close()


def test_packing_goes_on_where_it_stopped(folder, tmp_path, monkeypatch):
  out, size = tmp_path / "packed", pack.image_files.size

  def killed(data, where):
    if where.endswith(":22"):
      raise KeyboardInterrupt
    return size(data, where=where)

  monkeypatch.setattr(pack.image_files, "size", killed)
  with pytest.raises(KeyboardInterrupt):
    pack.pack(folder / "data.jsonl", out, shard_size=1)
  assert sorted(p.name for p in out.iterdir()) == [
    "00000.array_record",
    "started.json",
  ]
  with pytest.raises(ValueError, match=r"packed: is not complete; run the"):
    sources.make("jsonl", path=out)
  with pytest.raises(ValueError, match="was begun with other lines or another"):
    pack.pack(folder / "data.jsonl", out, shard_size=2)
  first = (out / "00000.array_record").stat()
  read = []
  monkeypatch.setattr(
    pack.image_files, "size", lambda data, where: read.append(where)
  )
  pack.pack(folder / "data.jsonl", out, shard_size=1)
  assert len(read) < COUNT
  assert (out / "00000.array_record").stat() == first
  for path in (folder / "packed").iterdir():
    assert (out / path.name).read_bytes() == path.read_bytes()


def test_what_cannot_be_packed_is_named(folder, tmp_path):
  data, packed = folder / "data.jsonl", folder / "packed"
  with pytest.raises(ValueError, match="is complete already; name another"):
    pack.pack(data, packed)
  with pytest.raises(ValueError, match=r"folder of scripts\.pack, expected a"):
    pack.pack(packed, tmp_path / "again")
  with pytest.raises(ValueError, match="exists already, expected a new folder"):
    pack.pack(data, folder)
  with pytest.raises(ValueError, match="--shard_size is 0, expected at least"):
    pack.pack(data, tmp_path / "out", shard_size=0)
  (tmp_path / "bad.jsonl").write_text('{"image": "gone.png"}\n')
  with pytest.raises(ValueError, match=r"bad\.jsonl:1: cannot read image .*"):
    pack.pack(tmp_path / "bad.jsonl", tmp_path / "out")
  (tmp_path / "gone.png").write_bytes(b"<html>")
  with pytest.raises(ValueError, match=r"bad\.jsonl:1: not a readable image"):
    pack.pack(tmp_path / "bad.jsonl", tmp_path / "out")
  (tmp_path / "gone.png").write_bytes(png(0))
  assert pack.pack(tmp_path / "bad.jsonl", tmp_path / "out") == (1, 1)


@pytest.fixture
def copied(folder, tmp_path):
  for path in (folder / "packed").iterdir():
    (tmp_path / path.name).write_bytes(path.read_bytes())
  return tmp_path


def test_shards_that_are_missing_or_cut(copied):
  path = copied / "00001.array_record"
  whole = path.read_bytes()
  path.write_bytes(whole[:-1])
  with pytest.raises(
    ValueError,
    match=rf"^{path}: has {len(whole) - 1} bytes, expected {len(whole)} bytes; "
    "copy it again, or pack the data again$",
  ):
    sources.make("jsonl", path=copied)
  path.unlink()
  with pytest.raises(ValueError, match=rf"^{path}: is missing, expected"):
    sources.make("jsonl", path=copied)
  (copied / shards.INDEX).write_text("{}")
  with pytest.raises(ValueError, match=r"was not written by scripts\.pack"):
    sources.make("jsonl", path=copied)


def test_damage_is_one_line_when_the_record_is_read(copied):
  path = copied / "00001.array_record"
  data = bytearray(path.read_bytes())
  data[70_000] ^= 1
  path.write_bytes(data)
  packed = sources.make("jsonl", path=copied)
  bad = []
  for i in range(COUNT):
    try:
      packed[i]
    except ValueError as error:
      bad.append((i, str(error)))
  ((index, message),) = bad
  assert message.startswith(f"{path}: damaged at record {index}, copy it again")
  assert "\n" not in message and len(message) < 500


def test_a_folder_holds_its_images(folder):
  with pytest.raises(ValueError, match="holds its images, leave image_root"):
    sources.make("jsonl", path=folder / "packed", image_root="/tmp")
