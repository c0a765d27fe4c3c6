"""Published data sets: from the publisher's files to the lines of a config."""

import errno
import io
import multiprocessing
import os
import pathlib
import pickle
import re
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from paligemma.data import sources
from scripts.datasets import catalog, folder
from tests.scripts.datasets import publishers


@pytest.fixture
def prepared(tmp_path):
  """Writes the publisher's files and prepares them; returns the lines."""

  def prepare(name, files=None, **options):
    raw = publishers.write_all(
      tmp_path / "raw", files or getattr(publishers, name)().files
    )
    folder.prepare(name, raw, tmp_path / "out", **options)
    return {
      path.stem: publishers.read_lines(path)
      for path in (tmp_path / "out").glob("*.jsonl")
    }

  return prepare


def readable(path):
  """Whether a training can read every example of a file."""
  source = sources.make("jsonl", path=path)
  return all(source[i]["image"] for i in range(len(source)))


@pytest.mark.parametrize(
  "name", ["cococap", "docvqa", "textvqa", "tallyqa", "nlvr2"]
)
def test_a_training_reads_every_example(name, prepared, tmp_path):
  prepared(name)
  assert all(map(readable, (tmp_path / "out").glob("*.jsonl")))


def test_of_an_archive_only_what_is_named_is_unpacked(prepared, tmp_path):
  files = publishers.cococap().files
  with zipfile.ZipFile(io.BytesIO(files["val2014.zip"])) as archive:
    assert "val2014/COCO_val2014_999999.jpg" in archive.namelist()
  prepared("cococap", files)
  assert (tmp_path / "out/images/val2014").is_dir()
  assert not list((tmp_path / "out").rglob("*999999.jpg"))


def test_textvqa_turns_pictures_back(prepared, tmp_path):
  found = prepared("textvqa", publishers.textvqa().files)
  turned, upright = found["train"][0], found["train"][3]
  assert upright["image"].startswith("../raw/train_images/")
  path = turned["image"].removeprefix("images/")
  was = np.asarray(Image.open(tmp_path / "raw" / path), int)
  now = np.asarray(Image.open(tmp_path / "out" / turned["image"]), int)
  # Counterclockwise, as tf.image.rot90.
  assert np.abs(now - np.rot90(was)).mean() < 12
  assert np.abs(now - np.rot90(was, -1)).mean() > 60


def test_pictures_of_a_validation_split_are_not_trained_on(prepared):
  """Also if another of the three data sets trains on them."""
  found = prepared("refcoco_seg")
  trained = {x["image"] for x in found["train"]}
  for name in ("refcoco_val", "refcocop_testA", "refcocog_val"):
    assert not trained & {x["image"] for x in found[name]}
  assert "../raw/train2017/000000000004.jpg" in trained
  assert "../raw/train2017/000000000005.jpg" not in trained


def test_a_pickle_that_runs_code_is_refused(prepared, tmp_path):
  class Evil:
    def __reduce__(self):
      return os.mkdir, (str(tmp_path / "evil"),)

  files = publishers.refcoco_seg().files
  files["refcocog/refs(umd).p"] = pickle.dumps([Evil()])
  with pytest.raises(ValueError, match=r"refs\(umd\).p: .*an object .*mkdir"):
    prepared("refcoco_seg", files)
  assert not (tmp_path / "evil").exists()


def test_a_missing_file_is_one_line_and_can_be_left_out(prepared, tmp_path):
  files = publishers.vqav2().files
  del files["v2_mscoco_val2014_annotations.json"]
  with pytest.raises(ValueError, match=r"holds no v2_mscoco_val2014.*_Val_ms"):
    prepared("vqav2", files)
  raw, out = tmp_path / "raw", tmp_path / "out"
  written = folder.prepare("vqav2", raw, out, skip_bad=True)
  assert written["validation"].examples is None
  assert "holds no v2_mscoco_val2014_annotations.json" in (
    written["validation"].first
  )
  assert (out / "test.jsonl").exists()
  assert not (out / "validation.jsonl").exists()


def test_missing_pictures_are_counted(prepared, tmp_path):
  files = publishers.textvqa().files
  del files["train_images/t000000000000001.jpg"]
  with pytest.raises(
    ValueError, match=r"3 of 24 examples name pictures .*data 3: train_images/t"
  ):
    prepared("textvqa", files)
  out = tmp_path / "out"
  assert not list(out.glob("train*")) and not list(out.glob(".train*"))
  written = folder.prepare("textvqa", tmp_path / "raw", out, skip_bad=True)
  assert (written["train"].examples, written["train"].left_out) == (21, 3)


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    (
      "v2_OpenEnded_mscoco_train2014_questions.json",
      '{"questions": [{"question_id": 9000, "image_id": 9, "question": ""},',
      "malformed JSON at character 68: the file ends too early",
    ),
    (
      "v2_OpenEnded_mscoco_train2014_questions.json",
      '{"questions": [{"question_id": 1 "image_id": 9, "question": "abcdef"}]}',
      "malformed JSON at character 33: Expecting ',' delimiter",
    ),
    ("v2_OpenEnded_mscoco_train2014_questions.json", "{}", 'no "questions"'),
    (
      "v2_OpenEnded_mscoco_train2014_questions.json",
      {"questions": [{"question_id": 9000, "question": "x"}]},
      "questions 0: malformed record: missing key 'image_id'",
    ),
    ("train2014.zip", b"PK\3\4 cut off", r"train2014.zip: .*is it complete\?"),
  ],
)
def test_damaged_files_are_named(prepared, name, content, message):
  files = {**publishers.vqav2().files, name: content}
  with pytest.raises(ValueError, match=message) as caught:
    prepared("vqav2", files)
  assert "\n" not in str(caught.value)


def test_a_damaged_picture_of_an_archive_leaves_out_its_lines(
  prepared, tmp_path
):
  files = publishers.vqav2().files
  data = bytearray(files["train2014.zip"])
  data[200] ^= 255
  files["train2014.zip"] = bytes(data)
  with pytest.raises(ValueError, match=r"COCO_train2014.*is it complete"):
    prepared("vqav2", files)
  raw, out = tmp_path / "raw", tmp_path / "out"
  written = folder.prepare("vqav2", raw, out, skip_bad=True)
  assert (written["train"].examples, written["train"].left_out) == (21, 3)
  assert "COCO_train2014_000000000009.jpg: " in written["train"].first
  assert written["test"].examples == 47


def test_a_second_run_goes_on(prepared, tmp_path):
  raw, out = tmp_path / "raw", tmp_path / "out"
  prepared("vqav2", splits=["train"])
  before = (out / "train.jsonl").stat().st_mtime_ns
  assert list(folder.prepare("vqav2", raw, out)) == [
    *("validation", "test", "test-dev")
  ]
  assert (out / "train.jsonl").stat().st_mtime_ns == before
  assert folder.prepare("vqav2", raw, out) == {}
  # A file that has changed is read again.
  files, _ = publishers.vqa("v2_", "val2014", range(3), str)
  publishers.write_all(raw, files)
  assert folder.prepare("vqav2", raw, out)["validation"].examples == 3
  with pytest.raises(ValueError, match="holds vqav2, name another folder"):
    folder.prepare("okvqa", raw, out)


@pytest.mark.parametrize(
  ("name", "picture"),
  [("vqav2", "train2014_000000000009"), ("screen2words", "combined/.*")],
)
def test_a_full_disk_is_no_damaged_picture(
  tmp_path, monkeypatch, name, picture
):
  """Of a zip, and of a tar: nothing is left out for it."""

  def no_space(path, data):
    path.touch()
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  files = getattr(publishers, name)().files
  raw = publishers.write_all(tmp_path / "raw", files)
  out = tmp_path / "out"
  with monkeypatch.context() as patched:
    patched.setattr(pathlib.Path, "write_bytes", no_space)
    with pytest.raises(OSError, match=rf"No space left .*{picture}.jpg'$"):
      folder.prepare(name, raw, out, skip_bad=True)
  assert not [path for path in out.rglob("*") if path.is_file()]
  half = out / "images/x/.y.jpg.123.tmp"
  half.parent.mkdir(parents=True)
  half.touch()
  written = folder.prepare(name, raw, out, skip_bad=True)
  assert not half.exists()
  assert not any(x.left_out for x in written.values())


@pytest.mark.parametrize(
  ("name", "file", "content", "message"),
  [
    (
      "widgetcap",
      "widget-caption/widget_captions.csv",
      "screen,node\n1,2\n",
      "widget_captions.csv: malformed record: missing key 'screenId'; is it of "
      "another release?",
    ),
    (
      "ocrvqa",
      "dataset.json",
      {
        "1": {
          "questions": ["a", "b"],
          "answers": ["c"],
          "split": 1,
          "imageURL": "1.jpg",
        }
      },
      "dataset.json: 1: its lists: differ in length",
    ),
    (
      "ocrvqa",
      "dataset.json",
      [1, 2],
      "dataset.json: malformed record: a value of another kind (",
    ),
    (
      "screen2words",
      "screen2words/split/dev_screens.txt",
      "one\n",
      "screen2words/split/dev_screens.txt: malformed record: a value of "
      "another kind (invalid literal for int() with base 10: 'one')",
    ),
    (
      "tallyqa",
      "train.json",
      [{"image": "VG_100K/1.jpg", "question": "How many?", "answer": "a"}],
      "train.json: 0: malformed record: a value of another kind (invalid lit",
    ),
    ("widgetcap", "combined/1.jpg", b"no", "combined/1.jpg: not a readable"),
    (
      "aokvqa",
      "aokvqa_v1p0.tar.gz",
      b"not packed",
      "aokvqa_v1p0.tar.gz: cannot be read (file could not be opened "
      "successfully); is it complete?",
    ),
    (
      "ai2d",
      "ai2d/annotations/0.png.json",
      {"text": {"T": {"rectangle": [[0, 0], [9, 9]]}}},
      "0.png: its texts: malformed record: missing key 'replacementText'",
    ),
    (
      "ai2d",
      "ai2d/questions/0.png.json",
      {"imageName": "0.png", "questions": {"Which?": {"abcLabel": "false"}}},
      "questions/0.png.json: question 0: malformed record: a value of another "
      "kind (abcLabel is 'false', expected true or false); is it of another",
    ),
    (
      "rsvqa_lr",
      "LR_split_train_questions.json",
      {"questions": [{"id": 0, "active": "false"}]},
      "kind (active is 'false', expected true or false)",
    ),
  ],
)
def test_files_of_another_release(tmp_path, name, file, content, message):
  files = getattr(publishers, name)().files
  assert file in files
  raw = publishers.write_all(tmp_path / "raw", {**files, file: content})
  with pytest.raises(ValueError, match=re.escape(message)):
    folder.prepare(name, raw, tmp_path / "out")


def test_a_packed_split_holds_its_pictures(prepared, tmp_path):
  """Also of an archive; training reads it by the path of the JSONL file."""
  raw, out = tmp_path / "raw", tmp_path / "out"
  prepared("cococap")
  lines = (out / "restval.jsonl").read_bytes()
  plain = sources.make("jsonl", path=out / "restval.jsonl")
  plain = [plain[i]["image"] for i in range(len(plain))]
  folder.pack("cococap", out, splits=["restval"])
  assert (out / "images").exists(), "that others name"
  folder.pack("cococap", out)
  assert sorted(path.name for path in out.iterdir()) == [
    *("nocaps.jsonl", "nocaps_test.jsonl", "prepared.json"),
    *("restval.jsonl", "test.jsonl", "train.jsonl", "val.jsonl"),
  ]
  shutil.move(raw, tmp_path / "away")
  packed = sources.make("jsonl", path=out / "restval.jsonl")
  assert (out / "restval.jsonl/examples.jsonl").read_bytes() == lines
  assert [packed[i]["image"] for i in range(len(packed))] == plain
  rows, wrong = folder.check("cococap", out)
  assert rows[2] == ("restval", "24", "", "30,504", "24")
  assert all("were published" in line for line in wrong)
  # Complete, and written again if the files have changed.
  shutil.move(tmp_path / "away", raw)
  assert folder.prepare("cococap", raw, out) == {}
  os.utime(raw / "nocaps_val_4500_captions.json", (0, 0))
  assert list(folder.prepare("cococap", raw, out)) == ["nocaps"]
  assert (out / "nocaps.jsonl").is_file()


def test_a_damaged_picture_of_a_packed_split_is_named(prepared, tmp_path):
  out = tmp_path / "out"
  prepared("textvqa", splits=["val"])
  picture = tmp_path / "raw/train_images/v000000000000001.jpg"
  whole = picture.read_bytes()
  picture.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(ValueError, match=r"val.jsonl:4: truncated or damaged"):
    folder.pack("textvqa", out)
  assert sorted(path.name for path in out.iterdir()) == [
    *("images", "prepared.json", "val.jsonl")
  ]
  png = io.BytesIO()
  Image.open(io.BytesIO(whole)).save(png, "PNG")
  data = bytearray(png.getvalue())
  data[len(data) // 2] ^= 255
  picture.write_bytes(data)
  folder.pack("textvqa", out)
  _, wrong = folder.check("textvqa", out, splits=["val"])
  assert "examples.jsonl:4: " in wrong[-1]
  assert "2 more cannot be decoded" in wrong[-1]


def test_examples_of_damaged_pictures_are_not_packed(prepared, tmp_path):
  """With skip_bad: each is counted, and the others are there."""
  out = tmp_path / "out"
  lines = prepared("nlvr2", splits=["dev", "test"])
  picture = out / lines["dev"][0]["image"][1]
  whole = picture.read_bytes()
  picture.write_bytes(whole[: len(whole) // 2])
  names_it = [x for x in lines["dev"] if "dev-10171-0-img1" in str(x["image"])]
  found = folder.pack("nlvr2", out, splits=["dev", "test"], skip_bad=True)
  assert list(found) == ["dev"]
  assert (found["dev"].examples, found["dev"].left_out) == (22, len(names_it))
  assert found["dev"].first.startswith(f"{picture}: truncated or damaged")
  packed = sources.make("jsonl", path=out / "dev.jsonl")
  assert [packed[i]["sentence"] for i in range(len(packed))] == [
    x["sentence"] for x in lines["dev"] if x not in names_it
  ]
  rows, wrong = folder.check("nlvr2", out, splits=["dev"])
  assert rows[1] == ("dev", "22", "2", "6,982", "22")
  assert len(wrong) == 1, "of the published count alone"


def test_a_split_of_damaged_pictures_alone_is_kept(prepared, tmp_path):
  out = tmp_path / "out"
  lines = prepared("mmvp")["test"]
  for line in lines:
    (out / line["image"]).write_bytes(b"no")
  with pytest.raises(ValueError, match=r".jpg: not a .*; no picture of the"):
    folder.pack("mmvp", out, skip_bad=True)
  assert publishers.read_lines(out / "test.jsonl") == lines


def test_a_damaged_archive_is_read_once(prepared, monkeypatch):
  """Not for each of a million examples, of which it may hold the picture."""
  files = publishers.screen2words().files
  opened, read = [], tarfile.open
  monkeypatch.setattr(tarfile, "open", lambda x: opened.append(x) or read(x))
  files["unique_uis.tar.gz"] = files["unique_uis.tar.gz"][:900]
  with pytest.raises(ValueError, match=r"no example .*is it complete\?"):
    prepared("screen2words", files, splits=["dev"], skip_bad=True)
  assert len(opened) == 1


def test_a_question_that_is_there_twice_is_told(prepared, tmp_path):
  files = publishers.docvqa().files
  questions = files["val_v1.0_withQT.json"]["data"]
  questions += questions[3:5]
  prepared("docvqa", files)
  _, wrong = folder.check("docvqa", tmp_path / "out", splits=["val"])
  assert wrong[0].endswith(
    "val.jsonl:25: 340 is the question_id of another example too, and so are 1 "
    "more"
  )


def test_videos_are_not_packed(tmp_path):
  raw = publishers.write_all(tmp_path / "raw", publishers.msvd_qa().files)
  folder.prepare("msvd_qa", raw, tmp_path / "out")
  with pytest.raises(ValueError, match=r"train.jsonl: videos are not packed; "):
    folder.pack("msvd_qa", tmp_path / "out")


@pytest.mark.parametrize("has_links", [True, False])
def test_linked_pictures_need_no_other_folder(
  prepared, tmp_path, monkeypatch, has_links
):
  raw, out = tmp_path / "raw", tmp_path / "out"
  prepared("textvqa")
  if not has_links:
    monkeypatch.setattr(os, "link", _no_link)
  found = prepared("textvqa", link=True)
  name = "train_images/v000000000000001.jpg"
  assert found["val"][3]["image"] == f"images/{name}"
  image, source = out / "images" / name, raw / name
  assert image.samefile(source) == has_links
  assert folder.prepare("textvqa", raw, out) == {}, "complete without links"
  shutil.rmtree(raw)
  assert all(map(readable, out.glob("*.jsonl")))


def _no_link(*_):
  raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


def test_check_names_what_differs(prepared, tmp_path):
  out = tmp_path / "out"
  prepared("textvqa")
  rows, wrong = folder.check("textvqa", out)
  assert rows[1] == ("train", "24", "", "34,602", "8")
  assert [line.partition(": ")[2] for line in wrong] == [
    f"24 examples, {count} were published: {less} less; is it another release?"
    for count, less in [
      *(("34,602", "34,578"), ("5,000", "4,976"), ("5,734", "5,710"))
    ]
  ]
  images = tmp_path / "raw/train_images"
  (images / "t000000000000001.jpg").write_bytes(publishers.jpeg()[:900])
  (tmp_path / "raw/test_images/t000000000000001.jpg").unlink()
  (out / "val.jsonl").write_text(
    '{"image": "../raw/train_images/t000000000000001.jpg", "answers": []}\n'
  )
  _, wrong = folder.check("textvqa", out)
  _, no_answer, _, _, shared, missing, damaged = wrong
  assert no_answer.endswith("val.jsonl:1: this and 0 more have no answer")
  assert shared.startswith("train and val share 1 pictures, such as ../raw")
  assert "1.jpg: no such file, and 0 more of 16 are missing" in missing
  assert (
    "t000000000000001.jpg" in damaged and "0 more cannot be decoded" in damaged
  )


def test_every_data_set_says_where_it_comes_from():
  for name, data_set in catalog.DATA_SETS.items():
    assert data_set.about.endswith("."), name
    assert data_set.files and data_set.splits, name
    assert data_set.homepage.startswith("https://"), name
    for split in data_set.splits:
      assert pathlib.PurePath(split).name == split


def test_lines_of_damaged_pictures_are_left_out_of_a_split(prepared, tmp_path):
  """One picture of an archive is damaged, and the others are kept."""
  files, lines = publishers.cococap()
  data = bytearray(files["val2014.zip"])
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    damaged = lines["val"][1]["image"]
    info = archive.getinfo(damaged.removeprefix("images/"))
  data[info.header_offset + 200] ^= 255
  files["val2014.zip"] = bytes(data)
  raw = publishers.write_all(tmp_path / "raw", files)
  with pytest.raises(ValueError, match=r"is it complete\?$"):
    folder.prepare("cococap", raw, tmp_path / "out", splits=["val"])
  written = folder.prepare(
    "cococap", raw, tmp_path / "out", splits=["val"], skip_bad=True
  )
  assert (written["val"].examples, written["val"].left_out) == (23, 1)
  assert damaged.removeprefix("images/") in written["val"].first
  kept = publishers.read_lines(tmp_path / "out/val.jsonl")
  assert kept == [lines["val"][0], *lines["val"][2:]]
  assert readable(tmp_path / "out/val.jsonl")


def test_progress_is_told_in_one_process_and_in_several(prepared, tmp_path):
  for jobs in (1, 3):
    told = []
    prepared(
      "vqav2",
      jobs=jobs,
      show=lambda *counts, told=told: told.append(counts),
    )
    # Of the made-up examples, where 1,213,298 were published.
    assert told[-1] == (24 + 24 + 47 + 24, 1_213_298)
    for path in (tmp_path / "out").glob("*.json*"):
      path.unlink()


def test_an_error_of_one_split_ends_the_processes_of_all(prepared, tmp_path):
  files = publishers.vqav2().files
  del files["v2_OpenEnded_mscoco_test2015_questions.json"]
  with pytest.raises(ValueError, match="holds no v2_OpenEnded_mscoco_test2015"):
    prepared("vqav2", files, jobs=3)
  assert not multiprocessing.active_children()
