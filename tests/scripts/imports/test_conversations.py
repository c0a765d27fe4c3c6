"""Conversations of LLaVA, ShareGPT, Qwen and chat templates."""

import json

import pytest

from scripts import import_data
from scripts.imports import conversations
from tests.scripts.imports.reading import picture, read, write_json


def llava(*texts, **fields):
  turns = [
    {"from": "gpt" if i % 2 else "human", "value": text}
    for i, text in enumerate(texts)
  ]
  return {"id": "1", "image": "a.jpg", "conversations": turns, **fields}


def chat(*texts, **fields):
  roles = ("user", "assistant")
  turns = [
    {"role": roles[i % 2], "content": text} for i, text in enumerate(texts)
  ]
  return {"messages": turns, **fields}


def examples(tmp_path, *rows, name="data.json", **options):
  src = write_json(tmp_path / name, list(rows))
  found, _, problems = read(
    conversations.read, src, **{"task": "vqa", **options}
  )
  return found, problems.notes


def paths(entry):
  return [path.name for path in entry.images]


IMAGE = {"type": "image", "image": "a.jpg"}


@pytest.mark.parametrize(
  "row",
  [
    llava("<image>\nWhat is it?", "A cat.\n"),
    llava("What is it?\n<image>", "A cat."),
    llava("What is it?", "A cat."),
    llava("<image>What is it?", "A cat.", image=["a.jpg"]),
    chat("<image>What is it?", "A cat.", images=["a.jpg"]),
    chat([IMAGE, {"type": "text", "text": "What is it?"}], "A cat."),
    chat(
      [IMAGE, {"type": "text", "text": "What is it?"}],
      [{"type": "text", "text": "A cat."}],
      images=["a.jpg"],
    ),
    chat([{"image": "a.jpg"}, {"text": "What is it?"}], "A cat."),
    chat(
      [{"type": "image"}, {"type": "text", "text": "What is it?"}],
      "A cat.",
      images=["a.jpg"],
    ),
    chat("Picture 1: <img>file://a.jpg</img>\nWhat is it?", "A cat."),
  ],
)
def test_one_question(row, tmp_path):
  ((entry,), notes) = examples(tmp_path, row)
  assert entry.question == "What is it?"
  assert entry.answers == ("A cat.",)
  assert entry.images[0] == tmp_path / "a.jpg"
  assert entry.split == "train"
  assert entry.where.endswith("data.json: conversation number 0")
  assert not notes


def test_every_answer_is_an_example(tmp_path):
  row = llava("<image>\nWhat is it?", "A cat.", "Which colour?", "Red.")
  found, notes = examples(tmp_path, row)
  assert [(e.question, e.answers, paths(e)) for e in found] == [
    ("What is it?", ("A cat.",), ["a.jpg"]),
    ("Which colour?", ("Red.",), ["a.jpg"]),
  ]
  assert [entry.fields for entry in found] == [{"id": "1"}, {"id": "1"}]
  what = "answers that lose what was said before them"
  assert notes == {
    what: (1, f"{tmp_path}/data.json: conversation number 0: message 3")
  }


def test_pictures_are_those_shown_until_then(tmp_path):
  row = chat(
    "<image><image> Which is red?",
    "The first.",
    "<image> And of all?",
    "None.",
    images=["a.jpg", "b.jpg", "c.jpg"],
  )
  found, _ = examples(tmp_path, row)
  assert [paths(entry) for entry in found] == [
    ["a.jpg", "b.jpg"],
    ["a.jpg", "b.jpg", "c.jpg"],
  ]
  assert [entry.question for entry in found] == [
    "Which is red?",
    "And of all?",
  ]


def test_placeholders_within_a_text(tmp_path):
  row = chat("Is <image> like <image>?", "Yes.", images=["a.jpg", "b.jpg"])
  ((entry,), notes) = examples(tmp_path, row)
  assert entry.question == "Is like ?"
  assert list(notes) == ["<image> taken out of the middle of a text"]


def test_messages_of_the_system_and_boxes_of_others_are_noted(tmp_path):
  row = llava("<image>\nWhere?", "<ref>cat</ref><box>(12,34),(56,78)</box>")
  row["conversations"].insert(0, {"from": "system", "value": "Be brief."})
  ((entry,), notes) = examples(tmp_path, row)
  assert entry.answers == ("<ref>cat</ref><box>(12,34),(56,78)</box>",)
  assert list(notes) == [
    "messages of the system left out",
    "boxes of another notation in answers stay text",
  ]


def test_captions(tmp_path):
  row = llava("<image>\nDescribe it.", "A red cat.", "More?", "No.")
  ((entry,), _) = examples(tmp_path, row, task="caption")
  assert entry.captions == ("A red cat.",)
  assert entry.question is None


def test_lines_files_and_splits(tmp_path):
  for name in ("train.jsonl", "llava_val.jsonl"):
    row = json.dumps(llava("<image>\nWhy\u2028not?", name), ensure_ascii=False)
    (tmp_path / name).write_text(f"{row}\r\n\n{row}\n")
  found, _, _ = read(conversations.read, tmp_path, task="vqa")
  assert [(e.split, e.where.rpartition("/")[2]) for e in found] == [
    ("val", "llava_val.jsonl:1"),
    ("val", "llava_val.jsonl:3"),
    ("train", "train.jsonl:1"),
    ("train", "train.jsonl:3"),
  ]
  assert found[0].question == "Why\u2028not?"


def test_import(tmp_path):
  picture(tmp_path / "src" / "x" / "a.jpg")
  src = write_json(
    tmp_path / "src" / "data.json", [llava("<image>\nWhat?", "A cat.")]
  )
  records, _ = import_data.import_data(
    "conversations",
    src,
    tmp_path / "out",
    task="vqa",
    images=tmp_path / "src" / "x",
  )
  assert records["train"] == [
    {
      "image": "../src/x/a.jpg",
      "id": "1",
      "prefix": "answer en What?",
      "suffix": "A cat.",
      "question": "What?",
      "answers": ["A cat."],
    }
  ]


@pytest.mark.parametrize(
  ("row", "message"),
  [
    (llava("Why?", "No.", image=None), "message 1: no picture, expected one"),
    (
      llava("<image><image>Why?", "No."),
      "number 0: 2 times <image> for 1 pictures, expected one for each",
    ),
    (llava("<image>Why?", "No.", image=[]), "1 times <image> for 0 pictures"),
    (llava("<image>Why?"), "number 0: the last message is no answer"),
    (llava(), "number 0: the last message is no answer"),
    (llava("<image>", "No."), "message 0: an empty text"),
    (llava("Why?", "\n"), "message 1: an empty text"),
    (llava("<video>Why?", "No."), "message 0: <video> stands for what is not"),
    (llava("Where?", "At <bbox>."), "message 1: <bbox> stands for what is no"),
    (llava("Why?", "<image>"), "message 1: <image> in an answer"),
    (
      {"image": "a.jpg", "conversations": [{"from": "gpt", "value": "No."}]},
      "message 0: of the assistant, expected one of the user",
    ),
    (
      chat("Why?", "No.", images=["a.jpg"]) | {"messages": [{"role": "x"}]},
      "message 0: unknown role 'x', expected one of human, user, gpt",
    ),
    (
      chat([{"type": "video", "video": "a.mp4"}], "No."),
      "message 0: part 0: expected a text or an image, found {'type': 'vid",
    ),
    (chat(["Why?"], "No."), "part 0: expected a text or an image, found 'Why"),
    (llava("Why?", "No.", image={"bytes": 3}), 'expected paths under "image"'),
    (
      llava("Why?", "No.", image="https://x.org/a.jpg"),
      "message 1: the picture is 'https://x.org/a.jpg', expected a path of a",
    ),
    (
      llava("Why?", "No.", image="data:image/png;base64,iVBO"),
      "message 1: the picture is 'data:image/png;base64,iVBO', expected a path",
    ),
    (
      chat([IMAGE, {"type": "text", "text": "?"}], "No.", images=["b.jpg"]),
      "pictures within the messages and beside them, expected one of both",
    ),
    ({"image": "a.jpg", "text": "x"}, 'missing key "conversations", found im'),
    ("x", "number 0: expected fields, found 'x'"),
    (llava("Why?", 3), 'message 1: expected str or list under "value"'),
    ({"conversations": ["x"]}, "message 0: expected fields"),
  ],
)
def test_bad_conversations(row, message, tmp_path):
  src = write_json(tmp_path / "data.json", [row, llava("Why?", "No.")])
  with pytest.raises(ValueError) as info:
    read(conversations.read, src, task="vqa")
  assert message in str(info.value)
  assert str(info.value).startswith(f"{src}: conversation number 0")
  # What is bad is left out whole; the next one stays.
  found, _, problems = read(conversations.read, src, task="vqa", skip=True)
  assert len(found) == len(problems.messages) == 1


def test_bad_files(tmp_path):
  src = write_json(tmp_path / "data.json", {"a": 1})
  with pytest.raises(ValueError, match="expected a list of conversations"):
    read(conversations.read, src, task="vqa")
  with pytest.raises(ValueError, match="no boxes; expected --task vqa or capt"):
    read(conversations.read, src, task="detect")
