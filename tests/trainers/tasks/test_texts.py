"""All texts of a source are read before the first step."""

import dataclasses
import json
import re

import numpy as np
import pytest
from PIL import Image

from paligemma import metrics
from paligemma.data import image_ops, object_ops, preprocess, sources, text_ops
from trainers import checks
from trainers.plan import Plan
from trainers.tasks import texts

BOX = "<loc0001><loc0022><loc0333><loc1023>"
FLAT = "<loc0333><loc0022><loc0001><loc1023>"


@pytest.fixture
def make(tokenizer, tmp_path):
  """A Dataset of a JSONL file of seven lines, some of them changed."""
  Image.new("RGB", (13, 11)).save(tmp_path / "a.png")

  def make(changes=None, *, size=7, dataset=None, **options):
    lines = []
    for i in range(size):
      line = {
        "image": "a.png",
        "prefix": f"dot {i}",
        "suffix": "1" * (i % 7 + 1),
      }
      change = (changes or {}).get(i, {})
      lines.append(
        change if isinstance(change, str) else json.dumps({**line, **change})
      )
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    options = {"res": 28, "text_len": 41, "train": True, **options}
    through = preprocess.Preprocess(tokenizer, **options)
    source = sources.Jsonl(path)
    return texts.TextDataset("train.main", source, through, **(dataset or {}))

  return make


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("text_len", [41, 9])
@pytest.mark.parametrize("answers", [{}, {2: {"suffix": ["1 1 1 1", "1"]}}])
def test_rows_are_those_of_the_preprocess(
  make, tokenizer, train, text_len, answers
):
  """The fast way gives what looking at every example gives."""
  dataset = {"decodes": not train, "max_answer": None if train else 3}
  options = {"train": train, "text_len": text_len, "too_long": "truncate"}
  dataset = make({} if train else answers, dataset=dataset, **options)
  read = dataset.read(tokenizer)
  assert read.is_complete
  assert read.counts == checks.look(dataset, tokenizer).counts
  assert (read.errors, read.notes) == ({}, [])


def test_no_picture_is_opened(make, tokenizer, tmp_path):
  dataset = make()
  (tmp_path / "a.png").unlink()
  assert len(dataset.read(tokenizer).counts) == 7


def test_every_line_is_read(make, tokenizer):
  changes = {
    1: '{"image": "a.png"',
    2: {"image": None},
    3: {"suffix": 7},
    4: {"prefix": "see <image>"},
    5: {"suffix": "1" * 99},
    6: {"suffix": "<loc100> dot"},
  }
  bad = make(changes).read(tokenizer).errors
  messages = {
    1: r"data.jsonl:2: malformed JSON",
    2: 'data.jsonl:3: expected a path under the key "image", found None',
    3: 'data.jsonl:4: expected a text under "suffix", found 7',
    4: "data.jsonl:5: <image> stands within the prompt",
    5: r"prompt and answer have \d+ \+ \d+ tokens, text_len 41 has room for 42",
    6: "data.jsonl:7: <loc100> is no piece of the vocabulary",
  }
  assert bad.keys() == messages.keys()
  for index, message in messages.items():
    assert re.search(message, bad[index])


def test_what_is_odd_is_counted_with_its_first_line(make, tokenizer):
  changes = {
    1: {"prefix": "<image>dot"},
    2: {"prefix": "<image> <bos>dot\n"},
    3: {"suffix": "\n1"},
    4: {"suffix": f"{BOX} a ; {FLAT} b<eos>"},
    5: {"suffix": " "},
    6: {"suffix": FLAT},
  }
  found = make(changes, text_len=99).read(tokenizer)
  assert not found.errors
  notes = [re.sub(r"/\S*/", "", note) for note in found.notes]
  assert notes == [
    "<image> taken off: 2, the first at data.jsonl:2",
    "<bos> taken off: 1, the first at data.jsonl:3",
    "line break taken off: 1, the first at data.jsonl:3",
    "answers that begin with a line break: 1, the first at data.jsonl:4",
    "<eos> taken off: 1, the first at data.jsonl:5",
    "answers with a box upside down or without area: 2, the first at "
    "data.jsonl:5",
    "empty answers: 1, the first at data.jsonl:6",
  ]


def test_control_tokens_of_other_models_are_counted(make, tokenizer):
  changes = {
    1: {"suffix": "1</s>"},
    2: {"prefix": "<IMAGE>dot", "suffix": "1</s>"},
    3: {"suffix": "<b>1</b> [1] <section>"},
  }
  found = make(changes, text_len=99).read(tokenizer)
  notes = [re.sub(r"/\S*/", "", note) for note in found.notes]
  assert notes == [
    '"</s>", no control token here but text: 2, the first at data.jsonl:2',
    '"<IMAGE>", no control token here but text: 1, the first at data.jsonl:3',
  ]
  assert not make(changes, texts="plain").read(tokenizer).notes


@pytest.mark.parametrize("train", [True, False])
def test_prompts_that_are_cut_are_counted(make, tokenizer, train):
  changes = {i: {"prefix": "dot" * 50} for i in (2, 5)}
  options = {"train": train, "dataset": {"decodes": not train}}
  found = make(changes, too_long="truncate", **options).read(tokenizer)
  (note,) = found.notes
  assert re.match(
    r"prompts cut to text_len: 2, the first at \S*data.jsonl:3$", note
  )
  assert found.counts[2].prompt == 42 - (not train)
  assert (
    found.counts
    == checks.look(
      make(changes, too_long="truncate", **options), tokenizer
    ).counts
  )
  found = make(changes, **options).read(tokenizer)
  assert found.errors.keys() == {2, 5}
  assert "raise text_len or shorten" in found.errors[2]


def test_plain_texts_are_taken_as_they_are(make, tokenizer):
  changes = {1: {"prefix": "see <image>"}, 2: {"suffix": "<loc100> 1<eos>"}}
  found = make(changes, texts="plain").read(tokenizer)
  assert (len(found.counts), found.errors, found.notes) == (7, {}, [])


def test_answers_that_are_all_empty_stop_the_run(make, tokenizer):
  dataset = make({i: {"suffix": " " * i} for i in range(7)})
  with pytest.raises(
    ValueError,
    match=r"^train.main: the answers of all 7 examples are empty, the first: "
    r"\S*data.jsonl:1; were their labels found\?$",
  ):
    dataset.read(tokenizer)


def test_a_slice_and_a_limit_are_read_alone(make, tokenizer):
  dataset = make({i: {"suffix": 7} for i in (0, 1, 5, 6)})
  part = sources.Cached(sources.Slice(dataset.source, "[2:5]"))
  found = dataclasses.replace(dataset, source=part).read(tokenizer)
  assert (found.counts.keys(), found.errors) == ({0, 1, 2}, {})
  found = dataclasses.replace(dataset, limit=2).read(tokenizer)
  assert (found.counts, found.errors.keys()) == ({}, {0, 1})


def test_ops_write_the_texts_that_are_read(make, tokenizer):
  ops = (text_ops.Format("count {what}", "{answer}"),)
  changes = {i: {"what": "dots", "answer": "one"} for i in range(7)}
  changes[3] = {"what": "dots"}
  found = make(changes, ops=ops).read(tokenizer)
  assert found.errors.keys() == {3}
  assert 'missing key "answer"' in found.errors[3]


def test_ops_that_need_the_picture_leave_the_lines(make, tokenizer):
  """Texts are then looked at in a sample, with the picture."""
  ops = (object_ops.WriteObjects(),)
  objects = [{"box": (1, 2, 5, 7), "label": "dot"}]
  changes = {i: {"objects": objects} for i in range(7)}
  changes[4] = "{"
  dataset = make(changes, ops=ops)
  found = dataset.read(tokenizer)
  assert not found.is_complete
  assert (found.counts, found.errors.keys()) == ({}, {4})
  with pytest.raises(ValueError, match=r"1 of 7 .*data.jsonl:5: malformed"):
    checks.look(dataset, tokenizer)


def test_a_metric_reads_all_examples(make, tokenizer):
  metric = metrics.make("mmvp")
  dataset = {"decodes": True, "metric": metric, "max_answer": 5}
  pairs = {i: {"pair": i // 2} for i in range(6)}
  dataset = make(pairs, size=6, train=False, dataset=dataset)
  assert len(dataset.read(tokenizer).counts) == 6
  odd = dataclasses.replace(dataset, limit=5)
  with pytest.raises(ValueError, match=r"^train.main: .*two examples of each"):
    odd.read(tokenizer)


def test_the_size_that_a_metric_reads_may_be_missing(make, tokenizer):
  detection = {"decodes": True, "metric": metrics.make("detection")}
  changes = {i: {"suffix": f"{BOX} dot"} for i in range(7)}
  changes[2] |= {"height": None, "width": 13}
  dataset = make(changes, train=False, dataset=detection)
  assert len(dataset.read(tokenizer).counts) == 7
  wrong = make(
    {**changes, 3: {"suffix": "dot"}}, train=False, dataset=detection
  )
  with pytest.raises(ValueError, match=r"data.jsonl:4: .*label without box"):
    wrong.read(tokenizer)


MOVING = {
  "Flip": image_ops.Flip(),
  "ZoomOut": image_ops.ZoomOut(),
  "InceptionCrop": image_ops.InceptionCrop(),
  "RandomCrop": image_ops.RandomCrop((3, 3)),
  "CentralCrop": image_ops.CentralCrop(),
}


@pytest.mark.parametrize("name", MOVING)
def test_pixels_do_not_move_under_locations(make, tokenizer, name):
  """One answer of many holds a box: it is found, whatever is sampled."""
  changes = {299: {"suffix": f"{BOX} dot"}}
  dataset = make(changes, size=300, ops=(MOVING[name],))
  assert dataset.located() == [299]
  with pytest.raises(
    ValueError,
    match=rf"data.jsonl:300: {name} moves the pixels, but not the locations in "
    '"suffix", which was written before; leave',
  ):
    checks.look(dataset, tokenizer, num=3)
  # The text is written anew, from the objects that moved.
  objects = [{"box": (1, 2, 5, 7), "label": "dot"}]
  changes = {i: {"objects": objects, "suffix": BOX} for i in range(7)}
  writes = (object_ops.DetectPrompt(("dot",)), object_ops.WriteObjects())
  checks.look(make(changes, ops=(MOVING[name], *writes)), tokenizer)
  # Objects alone do not move what is already written of them.
  with pytest.raises(ValueError, match=f"{name} moves the pixels"):
    checks.look(make(changes, ops=(MOVING[name],)), tokenizer)


@pytest.mark.parametrize("name", MOVING)
@pytest.mark.parametrize(
  "op", [text_ops.Format("a", "{x}."), text_ops.Choice("xs", "suffix")]
)
def test_locations_of_other_fields_do_not_enter_behind(
  make, tokenizer, name, op
):
  fields = {"x": f"{BOX} dot", "xs": [f"a ; {BOX} dot"]}
  ops = (MOVING[name], op)
  changes = {i: {"x": "1", "xs": ["1"]} for i in range(299)} | {299: fields}
  dataset = make(changes, size=300, ops=ops)
  with pytest.raises(ValueError, match=rf"data.jsonl:300: {name} moves the pi"):
    checks.look(dataset, tokenizer, num=3)
  checks.look(make(changes, size=300, ops=(op,)), tokenizer, num=3)


def test_the_table_counts_all(tiny, tmp_path):
  lines = (tiny.folder / "train.jsonl").read_text().splitlines()
  path = tiny.folder / "many.jsonl"
  path.write_text("\n".join(lines * 50) + "\n")
  config = tiny.config(train=path)
  plan = Plan(config)
  tok = plan.task.make_tokenizer(config, plan.model)
  said = checks.check(plan, tok, [])
  row = next(x for x in said.splitlines() if x.startswith("train.main"))
  assert re.split("  +", row)[1:3] == ["650", "650"]
  path.unlink()


def test_lengths_of_a_large_file_fit_in_chunks(make, tokenizer, monkeypatch):
  monkeypatch.setattr(texts, "_CHUNK", 3)
  read = make().read(tokenizer)
  monkeypatch.setattr(texts, "_CHUNK", 1000)
  assert read == make().read(tokenizer)
  assert np.all([row.prompt > 2 for row in read.counts.values()])
