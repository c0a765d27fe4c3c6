import types

import numpy as np
import pytest
from PIL import ExifTags, Image

from paligemma.data import photos
from paligemma.evals import annotated, answer_objects


def photo(path, description=None):
  exif = Image.Exif()
  if description:
    exif[ExifTags.Base.ImageDescription] = description
  Image.fromarray(np.full((11, 13, 3), 200, np.uint8)).save(path, exif=exif)
  return path


def answers(path, text="barn"):
  line = dict(image=str(path), index=0, height=11, width=13, prediction=text)
  return answer_objects.by_image([{**line, "objects": []}])


def test_what_has_not_changed_is_not_drawn_again(tmp_path):
  path = photo(tmp_path / "a.jpg")
  source, folder = photos.Photos([path]), tmp_path / "drawn"
  annotated.check_folder(folder, [path])
  annotated.write(answers(path), source, folder)
  first = (folder / "a.jpg").stat().st_mtime_ns
  annotated.check_folder(folder, [path])
  annotated.write(answers(path), source, folder)
  assert (folder / "a.jpg").stat().st_mtime_ns == first
  before = (folder / "a.jpg").read_bytes()
  annotated.write(answers(path, "mill"), source, folder)
  assert (folder / "a.jpg").read_bytes() != before


@pytest.mark.parametrize("description", [None, "OLYMPUS DIGITAL CAMERA"])
def test_a_photo_is_not_replaced(tmp_path, description):
  path = photo(tmp_path / "a.jpg", description)
  before = path.read_bytes()
  message = r"a\.jpg: is there, and was not drawn by this program; name another"
  with pytest.raises(ValueError, match=message):
    annotated.check_folder(tmp_path, [path])
  with pytest.raises(ValueError, match=message):
    annotated.write(answers(path), photos.Photos([path]), tmp_path)
  assert path.read_bytes() == before


def test_a_damaged_file_is_not_replaced(tmp_path):
  path = photo(tmp_path / "a.jpg")
  folder = tmp_path / "drawn"
  folder.mkdir()
  (folder / "a.jpg").write_bytes(b"no image")
  with pytest.raises(ValueError, match="was not drawn"):
    annotated.check_folder(folder, [path])


def test_a_folder_that_is_asked_about_holds_no_drawn_pictures(tmp_path):
  for folder in (tmp_path, tmp_path / "x" / "drawn"):
    with pytest.raises(ValueError, match=r"lies in .*; name a folder outside"):
      annotated.check_folder(folder, [tmp_path])
  annotated.check_folder(tmp_path.parent / "beside", [tmp_path])


def test_samples_are_spread_and_without_bad_examples(tmp_path):
  source = [{"image": photo(tmp_path / f"{i}.png").read_bytes()} for i in "ab"]
  source += [{"image": b"damaged"}, *source, [source[0]["image"]]]
  source[5] = {"image": source[5]}  # of several images the first
  evaluator = types.SimpleNamespace(
    source=source, metric="exact_match", answer_key="answer"
  )
  box = "<loc0256><loc0256><loc0767><loc0767> cat"
  records = [
    {"index": 0, "prefix": "hi", "prediction": box, "confidences": [0.5]},
    {"index": 1, "error": "bad"},
    {"index": 2, "prediction": "a picture that is damaged since"},
    {"index": 3, "prediction": "left out"},
    {"index": 4, "prediction": "barn", "answer": ["mill", "barn"]},
    {"index": 5, "prediction": "barn"},
  ]
  found = annotated.samples(evaluator, records, count=6, size=520)
  assert [sample.index for sample in found] == [0, 3, 4, 5]
  first, _, third, _ = found
  assert first.text == f"prefix: hi\nprediction: {box}"
  assert third.text == "prediction: barn\nanswer: ['mill', 'barn']"
  assert first.picture.size == (520, 440)
  pixels = np.asarray(first.picture)
  assert (pixels[110, 130:390] != 200).any(-1).all()  # the box, at 1/4
  assert (pixels[200:240, 200:300] == 200).all()
  assert third.picture.height > 440  # has the answer below
  few = annotated.samples(evaluator, records, count=3)
  assert [sample.index for sample in few] == [0, 5]
  assert annotated.samples(evaluator, []) == []
