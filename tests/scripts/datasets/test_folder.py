"""Published data sets: from the publisher's files to the lines of a config."""

import errno
import io
import json
import multiprocessing
import os
import pathlib
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from paligemma.data import masks, sources
from scripts.datasets import catalog, folder
from tests.scripts.datasets import publishers
from tests.scripts.datasets.publishers import ANSWERS, vqa_line


@pytest.fixture
def prepared(tmp_path):
  """Writes the publisher's files and prepares them; returns the lines."""

  def prepare(name, files=None, **options):
    raw = publishers.write_all(
      tmp_path / "raw", getattr(publishers, name)() if files is None else files
    )
    folder.prepare(name, raw, tmp_path / "out", **options)
    return {
      path.stem: [json.loads(line) for line in path.read_text().splitlines()]
      for path in (tmp_path / "out").glob("*.jsonl")
    }

  return prepare


def readable(path):
  """Whether a training can read every example of a file."""
  source = sources.make("jsonl", path=path)
  return all(source[i]["image"] for i in range(len(source)))


def test_coco_captions_and_nocaps(prepared, tmp_path):
  found = prepared("cococap")
  assert {name: len(lines) for name, lines in found.items()} == {
    "train": 2,
    "restval": 1,
    "val": 1,
    "test": 1,
    "nocaps": 1,
    "nocaps_test": 1,
  }
  assert found["train"][0] == {
    "image": "../raw/train2014/COCO_train2014_000000000001.jpg",
    "captions": [f"A barn {n}. " for n in range(5)],
    "image_id": 1,
  }
  (restval,) = found["restval"]
  assert restval["image"] == "images/val2014/COCO_val2014_000000000002.jpg"
  assert len(restval["captions"]) == 7
  (nocaps,) = found["nocaps"]
  assert nocaps["captions"] == [f"A dog {i}." for i in range(10)]
  assert nocaps["image"] == "images/validation/0013.jpg"
  assert all(map(readable, (tmp_path / "out").glob("*.jsonl")))
  # Of a zip, only what is named is unpacked.
  assert not list((tmp_path / "out").rglob("*000007.jpg"))


def test_vqav2(prepared, tmp_path):
  found = prepared("vqav2", jobs=2)
  packed = "COCO_train2014_000000000009.jpg"
  first, *others = found["train"]
  assert first == {
    **vqa_line("", 9000),
    "image": f"images/train2014/{packed}",
  }
  assert [x["question_id"] for x in others] == [9001, 9002]
  assert found["validation"] == [
    vqa_line("val2014/COCO_val2014_000000000009.jpg", 42000)
  ]
  assert found["test"][1:] == found["test-dev"]
  assert found["test-dev"] == [
    vqa_line("coco/test2015/COCO_test2015_000000000009.jpg", 2, hidden=True)
  ]
  assert all(map(readable, (tmp_path / "out").glob("*.jsonl")))


def test_textvqa_turns_pictures_back(prepared, tmp_path):
  found = prepared("textvqa")
  turned, _, upright = found["train"]
  assert turned == {
    "image": "images/train_images/aa.jpg",
    "question": "What does it say, 0?",
    "question_id": 0,
    "answers": ANSWERS,
  }
  assert upright["image"] == "../raw/train_images/bb.jpg"
  assert "answers" not in found["test"][0]
  was = np.asarray(Image.open(io.BytesIO(publishers.jpeg(1))), int)
  now = np.asarray(Image.open(tmp_path / "out" / turned["image"]), int)
  # Counterclockwise, as tf.image.rot90.
  assert np.abs(now - np.rot90(was)).mean() < 12
  assert np.abs(now - np.rot90(was, -1)).mean() > 60


def test_docvqa_of_two_releases(prepared):
  found = prepared("docvqa")
  assert found["train"][0] == {
    "image": "../raw/train/documents/x_0.png",
    "question": "What is the date?",
    "question_id": 337,
    "answers": ["1/8/93", "1/8/1993"],
  }
  assert found["val"][0]["image"] == "images/spdocvqa_images/x_0.png"
  assert found["test"][0].keys() == {"image", "question", "question_id"}


def test_refcoco(prepared):
  found = prepared("refcoco_seg")
  # Picture 3 is that of a validation split.
  (train,) = found["train"]
  assert train["image"] == "../raw/train2017/000000000001.jpg"
  assert [x["sentences"] for x in train["objects"]] == [
    ["left dog", "dog"] * 2,
    ["a big dog"],
  ]
  assert (train["height"], train["width"]) == (31, 43)
  first, second = found["refcoco_val"]
  (item,) = second["objects"]
  assert item["sentences"] == ["the dog"]
  assert item["label"] == "dog"
  assert item["box"] == [5.0, 8.0, 20.0, 26.0]
  mask = masks.from_rle(item["mask"], 31, 43)
  assert mask[5:20, 8:26].all() and mask.sum() == 15 * 18
  assert first["objects"][0]["sentences"] == ["right dog"]
  (crowd,) = found["refcocop_testA"]
  assert masks.from_rle(crowd["objects"][0]["mask"], 31, 43).sum() == 62
  assert found["refcocog_val"][0]["objects"][0]["sentences"] == ["v"]


def test_a_pickle_that_runs_code_is_refused(prepared, tmp_path):
  class Evil:
    def __reduce__(self):
      return os.mkdir, (str(tmp_path / "evil"),)

  files = publishers.refcoco_seg()
  files["refcocog/refs(umd).p"] = publishers.pickle.dumps([Evil()])
  with pytest.raises(ValueError, match=r"refs\(umd\).p: .*an object .*mkdir"):
    prepared("refcoco_seg", files)
  assert not (tmp_path / "evil").exists()


def test_a_missing_file_is_one_line_and_can_be_left_out(prepared, tmp_path):
  files = publishers.vqav2()
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
  files = publishers.textvqa()
  del files["train_images/bb.jpg"]
  with pytest.raises(
    ValueError, match=r"1 of 3 examples name pictures .*data 2: train_images/bb"
  ):
    prepared("textvqa", files)
  out = tmp_path / "out"
  assert not list(out.glob("train*")) and not list(out.glob(".train*"))
  written = folder.prepare("textvqa", tmp_path / "raw", out, skip_bad=True)
  assert (written["train"].examples, written["train"].left_out) == (2, 1)


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
  files = {**publishers.vqav2(), name: content}
  with pytest.raises(ValueError, match=message) as caught:
    prepared("vqav2", files)
  assert "\n" not in str(caught.value)


def test_a_damaged_picture_of_an_archive_leaves_out_its_lines(
  prepared, tmp_path
):
  files = publishers.vqav2()
  data = bytearray(files["train2014.zip"])
  data[200] ^= 255
  files["train2014.zip"] = bytes(data)
  with pytest.raises(ValueError, match=r"COCO_train2014.*is it complete"):
    prepared("vqav2", files)
  raw, out = tmp_path / "raw", tmp_path / "out"
  written = folder.prepare("vqav2", raw, out, skip_bad=True)
  assert written["train"].examples is None
  assert "no example was written" in written["train"].first
  assert written["test"].examples == 2


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
  publishers.write_all(raw, publishers.vqa("v2_", "val2014", 42000, 42001))
  assert folder.prepare("vqav2", raw, out)["validation"].examples == 2
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

  raw = publishers.write_all(tmp_path / "raw", getattr(publishers, name)())
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
  ],
)
def test_files_of_another_release(tmp_path, name, file, content, message):
  files = getattr(publishers, name)()
  assert file in files
  raw = publishers.write_all(tmp_path / "raw", {**files, file: content})
  with pytest.raises(ValueError, match=re.escape(message)):
    folder.prepare(name, raw, tmp_path / "out")


def test_a_packed_split_holds_its_pictures(prepared, tmp_path):
  """Also of an archive; training reads it by the path of the JSONL file."""
  raw, out = tmp_path / "raw", tmp_path / "out"
  prepared("cococap")
  lines = (out / "restval.jsonl").read_bytes()
  plain = [sources.make("jsonl", path=out / "restval.jsonl")[i] for i in (0,)]
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
  (found,) = [packed[i] for i in range(len(packed))]
  assert found["image"] == plain[0]["image"]
  rows, wrong = folder.check("cococap", out)
  assert rows[2] == ("restval", "1", "", "30,504", "1")
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
  picture = tmp_path / "raw/train_images/dd.jpg"
  whole = picture.read_bytes()
  picture.write_bytes(whole[:900])
  with pytest.raises(ValueError, match=r"val.jsonl:1: truncated or damaged"):
    folder.pack("textvqa", out)
  assert sorted(path.name for path in out.iterdir()) == [
    *("prepared.json", "val.jsonl")
  ]
  png = io.BytesIO()
  Image.open(io.BytesIO(whole)).save(png, "PNG")
  data = bytearray(png.getvalue())
  data[len(data) // 2] ^= 255
  picture.write_bytes(data)
  folder.pack("textvqa", out)
  _, wrong = folder.check("textvqa", out, splits=["val"])
  assert "examples.jsonl:1: " in wrong[-1]
  assert "0 more cannot be decoded" in wrong[-1]


def test_videos_are_not_packed(tmp_path):
  raw = publishers.write_all(tmp_path / "raw", publishers.msvd_qa())
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
  assert found["val"][0]["image"] == "images/train_images/dd.jpg"
  image, source = (
    out / "images/train_images/dd.jpg",
    raw / "train_images/dd.jpg",
  )
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
  assert rows[1] == ("train", "3", "", "34,602", "2")
  assert [line.partition(": ")[2] for line in wrong] == [
    "3 examples, 34,602 were published: 34,599 less; is it another release?",
    *(
      f"1 examples, {count} were published: {less} less; is it another release?"
      for count, less in [("5,000", "4,999"), ("5,734", "5,733")]
    ),
  ]
  (tmp_path / "raw/train_images/bb.jpg").write_bytes(publishers.jpeg()[:900])
  (tmp_path / "raw/test_images/cc.jpg").unlink()
  (out / "val.jsonl").write_text(
    '{"image": "../raw/train_images/bb.jpg", "answers": []}\n'
  )
  _, wrong = folder.check("textvqa", out)
  _, no_answer, _, _, shared, missing, damaged = wrong
  assert no_answer.endswith("val.jsonl:1: this and 0 more have no answer")
  assert shared.startswith("train and val share 1 pictures, such as ../raw")
  assert "cc.jpg: no such file, and 0 more of 3 are missing" in missing
  assert "bb.jpg" in damaged and "0 more cannot be decoded" in damaged


def test_every_data_set_says_where_it_comes_from():
  for name, data_set in catalog.DATA_SETS.items():
    assert data_set.about.endswith("."), name
    assert data_set.files and data_set.splits, name
    assert data_set.homepage.startswith("https://"), name
    for split in data_set.splits:
      assert pathlib.PurePath(split).name == split


def test_lines_of_damaged_pictures_are_left_out_of_a_split(prepared, tmp_path):
  """One picture of an archive is damaged, and the others are kept."""
  files = publishers.cococap()
  names = [f"val2014/COCO_val2014_{i:012d}.jpg" for i in (2, 3, 4)]
  content = {name: publishers.jpeg(i) for i, name in enumerate(names)}
  karpathy = publishers.karpathy()
  for image in karpathy["images"][1:4]:
    image["split"] = "val"
  files["caption_datasets.zip"] = publishers.zipped(
    {"dataset_coco.json": json.dumps(karpathy)}
  )
  data = bytearray(publishers.zipped(content))
  data[len(data) // 2] ^= 255
  files["val2014.zip"] = bytes(data)
  raw = publishers.write_all(tmp_path / "raw", files)
  with pytest.raises(ValueError, match=r"is it complete\?$"):
    folder.prepare("cococap", raw, tmp_path / "out", splits=["val"])
  written = folder.prepare(
    "cococap", raw, tmp_path / "out", splits=["val"], skip_bad=True
  )
  assert (written["val"].examples, written["val"].left_out) == (2, 1)
  assert "COCO_val2014_000000000003.jpg" in written["val"].first
  lines = (tmp_path / "out/val.jsonl").read_text().splitlines()
  kept = [f"images/{names[0]}", f"images/{names[2]}"]
  assert [json.loads(line)["image"] for line in lines] == kept
  assert readable(tmp_path / "out/val.jsonl")


def test_progress_is_told_in_one_process_and_in_several(prepared, tmp_path):
  for jobs in (1, 3):
    told = []
    prepared(
      "vqav2",
      jobs=jobs,
      show=lambda *counts, told=told: told.append(counts),
    )
    # Of 7 made-up examples, where 1,213,298 were published.
    assert told[-1] == (7, 1_213_298)
    for path in (tmp_path / "out").glob("*.json*"):
      path.unlink()


def test_an_error_of_one_split_ends_the_processes_of_all(prepared, tmp_path):
  files = publishers.vqav2()
  del files["v2_OpenEnded_mscoco_test2015_questions.json"]
  with pytest.raises(ValueError, match="holds no v2_OpenEnded_mscoco_test2015"):
    prepared("vqav2", files, jobs=3)
  assert not multiprocessing.active_children()
