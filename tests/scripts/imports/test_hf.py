"""Data sets of Hugging Face as people have them, in folders and tables."""

import io
import json
import pathlib

import pytest
from PIL import Image

from scripts.imports import hf
from tests.scripts.imports import reading

pyarrow = pytest.importorskip("pyarrow")
BOX = {"bbox": [[7, 11, 83, 29]], "category": ["cat"]}


def draw(*paths):
  for path in paths:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(PNG)


def encoded():
  data = io.BytesIO()
  Image.new("RGB", (97, 61)).save(data, "PNG")
  return data.getvalue()


PNG = encoded()


def write(path, *rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def write_table(path, *rows, features=None):
  from pyarrow import parquet

  path.parent.mkdir(parents=True, exist_ok=True)
  made = pyarrow.Table.from_pylist(list(rows))
  if features:
    described = json.dumps({"info": {"features": features}})
    made = made.replace_schema_metadata({"huggingface": described})
  if path.suffix == ".parquet":
    parquet.write_table(made, path)
  else:
    with pyarrow.ipc.new_stream(str(path), made.schema) as file:
      file.write_table(made)


def read(src, task="detect", **options):
  """The entries, the labels and the problems of a data set."""
  return reading.read(hf.read, src, task=task, **options)


@pytest.mark.parametrize(
  ("answer", "answers"),
  [
    (7, ("7",)),
    (7.0, ("7",)),
    (7.5, ("7.5",)),
    (" yes ", ("yes",)),
    (["a", 2], ("a", "2")),
    ([{"answer": "net", "answer_id": 1}, {"answer": "a"}], ("net", "a")),
  ],
)
def test_answers(tmp_path, answer, answers):
  draw(tmp_path / "a.png")
  row = {"file_name": "a.png", "question": "q", "answers": answer}
  write(tmp_path / "metadata.jsonl", row)
  found, _, _ = read(tmp_path, "vqa")
  assert found[0].answers == answers
  write(tmp_path / "metadata.jsonl", {**row, "question": ["q"]})
  assert read(tmp_path, "vqa")[0][0].question == "q"


@pytest.mark.parametrize("answer", [None, "", [], True, ["a", None], {"x": 1}])
def test_answers_that_are_none(tmp_path, answer):
  draw(tmp_path / "a.png")
  row = {"file_name": "a.png", "question": "q", "answer": answer}
  write(tmp_path / "metadata.jsonl", row, {**row, "answer": "yes"})
  with pytest.raises(
    ValueError, match=r"l:1: expected a text or a number as answer, found"
  ):
    read(tmp_path, "vqa")
  found, _, problems = read(tmp_path, "vqa", skip=True)
  assert [x.answers for x in found] == [("yes",)]
  assert len(problems.messages) == 1


def test_answers_that_are_classes(tmp_path):
  row = {"image": PNG, "question": "q", "answer": 1, "other": [0, 1]}
  classes = {"names": ["no", "yes"], "_type": "ClassLabel"}
  features = {"answer": classes, "other": {"feature": classes}}
  write_table(tmp_path / "a.parquet", row, features=features)
  found, labels, _ = read(tmp_path, "vqa")
  assert found[0].answers == ("yes",) and labels is None
  assert found[0].fields == {"other": ["no", "yes"]}
  row["answer"] = -1
  write_table(tmp_path / "a.parquet", row, features=features)
  with pytest.raises(
    ValueError, match=r"row 0: unknown class -1, the data set"
  ):
    read(tmp_path, "vqa")


def test_classes_of_a_folder(tmp_path):
  draw(tmp_path / "a.png")
  objects = {"bbox": [[7, 11, 83, 29]], "category": [1]}
  write(tmp_path / "metadata.jsonl", {"file_name": "a.png", "objects": objects})
  with pytest.raises(
    ValueError, match="object 0: category 1 is a number for which the data set "
  ):
    read(tmp_path)
  feature = {"category": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
  content = {"features": {"objects": {"feature": feature, "_type": "List"}}}
  (tmp_path / "dataset_info.json").write_text(json.dumps(content))
  found, labels, _ = read(tmp_path)
  assert found[0].objects[0].label == "dog" and labels == ("cat", "dog")


CARD = """---
license: mit
dataset_info:
  features:
  - {name: file_name, dtype: string}
  - name: objects
    %s:
    - {name: bbox, sequence: float32, length: 4}
    - name: category
      dtype:
        class_label:
          names:
            '1': no
            '0': 0017
---
# Pets
"""


@pytest.mark.parametrize("kind", ["sequence", "list", "struct"])
def test_classes_of_a_card(tmp_path, kind):
  draw(tmp_path / "a.png")
  row = {
    "file_name": "a.png",
    "objects": {"bbox": [[7, 11, 83, 29]] * 2, "category": [1, 0]},
  }
  write(tmp_path / "metadata.jsonl", row)
  card = tmp_path / "README.md"
  card.write_text(CARD % kind)
  found, labels, _ = read(tmp_path)
  assert [x.label for x in found[0].objects] == ["no", "0017"]
  assert labels == ("0017", "no")
  row["image"] = PNG
  del row["file_name"]
  (tmp_path / "metadata.jsonl").unlink()
  write_table(tmp_path / "data" / "train.parquet", row)
  found, labels, _ = read(tmp_path)
  assert found[0].objects[0].label == "no" and labels == ("0017", "no")
  card.write_text((CARD % kind).replace("'0'", "'2'"))
  with pytest.raises(
    ValueError, match=r"md: .* from 0 to 1, found those of 1, 2"
  ):
    read(tmp_path)
  card.write_text((CARD % kind).replace("mit", "[mit"))
  with pytest.raises(ValueError, match=r"README\.md:3: malformed YAML: "):
    read(tmp_path)


@pytest.mark.parametrize(
  ("configurations", "label"),
  [
    ("- features: &f %s\n- features: *f", "cat"),
    ("- features: %s\n- {}", None),
  ],
)
def test_a_card_of_several_configurations(tmp_path, configurations, label):
  feature = "[{name: answer, class_label: {names: [cat, dog]}}]"
  card = f"---\ndataset_info:\n{configurations % feature}\n---\n"
  (tmp_path / "README.md").write_text(card)
  row = {"image": PNG, "question": "q", "answer": 0}
  write_table(tmp_path / "a.parquet", row)
  found, _, _ = read(tmp_path, "vqa")
  assert found[0].answers == (label or "0",)


def test_cards_without_features(tmp_path):
  write_table(tmp_path / "a.parquet", {"image": PNG, "text": "x"})
  for text in ("", "# Pets\n---\n", "---\n", "---\n[1]\n---", "---\n---\n"):
    (tmp_path / "README.md").write_text(text)
    found, _, _ = read(tmp_path, "caption")
    assert found[0].captions == ("x",)


def test_several_images_of_one_prompt(tmp_path):
  draw(tmp_path / "a.png", tmp_path / "b.png")
  write(
    tmp_path / "metadata.jsonl",
    {"images": ["a.png", "b.png"], "text": "two"},
    {"images": ["a.png"], "text": "one"},
  )
  found, _, _ = read(tmp_path, "caption")
  assert [x.images for x in found] == [
    (tmp_path / "a.png", tmp_path / "b.png"),
    (tmp_path / "a.png",),
  ]
  other = tmp_path / "other"
  contents = {"bytes": PNG, "path": "a.png"}
  write_table(
    other / "t.parquet",
    {"images": [contents, contents], "text": "two"},
    {"images": [contents], "text": "one"},
    {"images": [], "text": "none"},
  )
  with pytest.raises(ValueError, match="row 2: holds no image"):
    read(other, "caption")
  found, _, _ = read(other, "caption", skip=True)
  assert [[image.path.name for image in x.images] for x in found] == [
    ["t-000000.png", "t-000000-1.png"],
    ["t-000001.png"],
  ]
  assert {image.data for x in found for image in x.images} == {PNG}


def test_images_of_a_table_that_are_files(tmp_path):
  draw(tmp_path / "data" / "a.png", tmp_path / "b.png")
  write_table(
    tmp_path / "data" / "t.parquet",
    {"image": {"bytes": None, "path": "a.png"}, "text": "beside"},
    {"image": {"bytes": None, "path": "b.png"}, "text": "above"},
    {"image": {"bytes": None, "path": None}, "text": "nowhere"},
  )
  with pytest.raises(
    ValueError, match="row 2: expected the contents or the path of an image"
  ):
    read(tmp_path, "caption")
  found, _, _ = read(tmp_path, "caption", skip=True)
  assert [x.images[0] for x in found] == [
    tmp_path / "data" / "a.png",
    tmp_path / "b.png",
  ]
  write_table(tmp_path / "data" / "t.parquet", {"image": "a.png", "text": "x"})
  found, _, _ = read(tmp_path / "data" / "t.parquet", "caption")
  assert found[0].images[0] == tmp_path / "data" / "a.png"
  write_table(tmp_path / "data" / "t.parquet", {"text": "x"})
  with pytest.raises(
    ValueError, match=r"t\.parquet: row 0: no column image or fi"
  ):
    read(tmp_path, "caption")


def test_tables_of_save_to_disk(tmp_path):
  row = {"image": {"bytes": PNG, "path": None}, "objects": BOX}
  for split in ("train", "validation"):
    write_table(tmp_path / split / "data-00000-of-00001.arrow", row)
    write_table(tmp_path / split / "cache-1.arrow", row)
    (tmp_path / split / "dataset_info.json").write_text("{}")
  found, _, _ = read(tmp_path)
  assert [x.split for x in found] == ["train", "val"]
  assert (
    found[0].objects[0].box == (11, 7, 40, 90)
    and found[0].images[0].data == PNG
  )
  (tmp_path / "train" / "data-00000-of-00001.arrow").write_bytes(b"x")
  with pytest.raises(ValueError, match=r"00001\.arrow: cannot read it: "):
    read(tmp_path)


@pytest.mark.parametrize(
  ("path", "split"),
  [
    ("vqa-dev-data/train-00000-of-00001.parquet", "train"),
    ("train_0.parquet", "train"),
    ("train/part 1.parquet", "train"),
    ("data/validation.clean.parquet", "val"),
    ("test/dev_2.parquet", "val"),
    ("strain.parquet", "train"),
    ("contest/latest.parquet", "train"),
    ("eval/0000.parquet", "test"),
  ],
)
def test_splits_of_tables(tmp_path, path, split):
  write_table(tmp_path / path, {"image": PNG, "text": "x"})
  assert [x.split for x in read(tmp_path, "caption")[0]] == [split]


def test_splits_of_folders_are_not_read_off_images(tmp_path):
  for name in ("dev board.png", "test/x.png", "train/test_1.png"):
    draw(tmp_path / name)
  write(
    tmp_path / "metadata.jsonl",
    {"file_name": "dev board.png", "text": "a"},
    {"file_name": "test/x.png", "text": "b"},
    {"file_name": "train/test_1.png", "text": "c"},
  )
  found, _, _ = read(tmp_path, "caption")
  assert [x.split for x in found] == ["train", "test", "train"]


def write_objects(folder, kind, objects):
  """An image with objects, in a folder with metadata or in a table."""
  if kind == "folder":
    draw(folder / "a.png")
    row = {"file_name": "a.png", "objects": objects}
    write(folder / "metadata.jsonl", row)
  else:
    write_table(folder / "a.parquet", {"image": PNG, "objects": objects})


@pytest.mark.parametrize("kind", ["folder", "table"])
def test_boxes_that_are_corners(tmp_path, kind):
  boxes = [[7 + i, 11, 90, 40] for i in range(7)]
  objects = {"bbox": boxes, "category": ["cat"] * 7}
  write_objects(tmp_path, kind, objects)
  with pytest.raises(ValueError) as info:
    read(tmp_path)
  assert str(info.value) == (
    f"{tmp_path}: read as xywh, 5 of 7 boxes do not fit their pictures; read "
    "as xyxy they do: pass --boxes xyxy, or --boxes xywh to keep it"
  )
  found, _, _ = read(tmp_path, boxes="xyxy")
  assert found[0].objects[6].box == (11, 13, 40, 90)


@pytest.mark.parametrize("kind", ["folder", "table"])
def test_boxes_as_shares(tmp_path, kind):
  objects = [
    {"bbox": [0.25, 0.5, 0.5, 0.375], "label": "cat", "area": 0.2},
    {"bbox": [0, 0, 1, 1], "label": "dog", "area": 1.0},
  ]
  write_objects(tmp_path, kind, objects)
  found, _, problems = read(tmp_path)
  first, second = found[0].objects
  assert first.shares and first.box == (0.5, 0.25, 0.875, 0.75)
  assert second.shares and second.box == (0, 0, 1, 1) and second.area is None
  assert list(problems.notes) == [
    "data sets with boxes from 0 to 1, read as shares"
  ]


def test_crowds_and_areas(tmp_path):
  draw(tmp_path / "a.png")
  objects = {**BOX, "iscrowd": [1], "area": [17]}
  write(tmp_path / "metadata.jsonl", {"file_name": "a.png", "objects": objects})
  (thing,) = read(tmp_path)[0][0].objects
  assert thing.crowd and thing.area == 17


@pytest.mark.parametrize(
  ("objects", "message"),
  [
    (
      {**BOX, "bbox": [[7, 11, "nan", 29]]},
      "object 0: expected 4 numbers of a",
    ),
    ({**BOX, "bbox": [[7, 11, True, 29]]}, "object 0: expected 4 numbers of a"),
    ({**BOX, "bbox": [None]}, "object 0: expected list or tuple or str under"),
    ({**BOX, "category": [None]}, 'object 0: expected str or int under "cat'),
    (None, "expected objects, found None"),
    ("x", "expected objects, found 'x'"),
  ],
)
def test_a_bad_object_takes_its_image_out(tmp_path, objects, message):
  draw(tmp_path / "a.png", tmp_path / "b.png")
  write(
    tmp_path / "metadata.jsonl",
    {"file_name": "a.png", "objects": objects},
    {"file_name": "b.png", "objects": BOX},
  )
  with pytest.raises(ValueError, match=f"jsonl:1: {message}"):
    read(tmp_path)
  found, _, problems = read(tmp_path, skip=True)
  assert [x.images[0].name for x in found] == ["b.png"]
  assert len(problems.messages) == 1


def test_conversations_are_another_format(tmp_path):
  draw(tmp_path / "a.png")
  row = {"image": "a.png", "conversations": [{"from": "human", "value": "x"}]}
  write(tmp_path / "metadata.jsonl", row)
  with pytest.raises(ValueError, match="are read with --from conversations"):
    read(tmp_path, "vqa")


def test_separators_in_texts(tmp_path):
  draw(tmp_path / "a.png")
  row = {"file_name": "a.png", "text": "one\u2028two\u0085three"}
  text = json.dumps(row, ensure_ascii=False)
  (tmp_path / "metadata.jsonl").write_text(f"{text}\n", encoding="utf-8")
  found, _, _ = read(tmp_path, "caption")
  assert found[0].captions == (row["text"],)
  assert found[0].images[0] == pathlib.Path(tmp_path / "a.png")
