"""Every check is broken once: by the data, an op, a preprocess or a config."""

import dataclasses
import itertools
import math
import re
import types
from collections.abc import Callable

import jax
import numpy as np
import pytest

from paligemma import evals, metrics, tree
from paligemma.checkpoints import formats, npz
from paligemma.data import preprocess, text_ops
from paligemma.models import paligemma as paligemma_model
from paligemma.models.attention import masks
from trainers import (
  checks,
  inputs,
  loop,
  tasks,
  train,
)
from trainers.plan import Plan
from trainers.state import TrainState
from trainers.tasks import datasets, texts


@dataclasses.dataclass(frozen=True)
class Source:
  """Thirteen examples whose prompts are 5 to 17 words, on one picture.

  Attributes:
    image: its encoded picture.
    changes: index -> fields that are other; None removes one.
  """

  image: bytes
  changes: dict = dataclasses.field(default_factory=dict)
  size: int = 13

  def __len__(self):
    return self.size

  def __getitem__(self, index):
    example = {
      "image": self.image,
      "prefix": "dot" + " dot" * index,
      "suffix": "1" * (index % 5 + 1),
      "_where": f"{index}.json",
      **self.changes.get(index, {}),
    }
    return {key: value for key, value in example.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class Faulty(preprocess.Preprocess):
  """Spoils the rows: fault(row, example) changes the arrays of a row."""

  fault: Callable = None

  def __call__(self, example, rng):
    row = super().__call__(example, rng)
    self.fault(row, example)
    return row


@pytest.fixture(autouse=True)
def all_the_time(monkeypatch):
  monkeypatch.setattr(checks, "SECONDS", math.inf)


@pytest.fixture
def image(tiny):
  return (tiny.folder / "train3.png").read_bytes()


@pytest.fixture
def make(tokenizer, image):
  """A Dataset of the examples above."""

  def dataset(changes=None, *, size=13, fault=None, dataset=None, **options):
    options = {"res": 28, "text_len": 41, "train": True, **options}
    if fault is None:
      through = preprocess.Preprocess(tokenizer, **options)
    else:
      through = Faulty(tokenizer, fault=fault, **options)
    source = Source(image, changes or {}, size)
    return texts.TextDataset("train.main", source, through, **(dataset or {}))

  return dataset


@pytest.fixture
def look(tokenizer):
  return lambda dataset, **options: checks.look(dataset, tokenizer, **options)


def ids(tokenizer, text):
  return len(tokenizer.encode(text))


def test_all_rows_of_a_small_source_are_counted(make, look, tokenizer):
  dataset = make()
  found = look(dataset)
  examples = [dataset.source[i] for i in range(13)]
  expected = []
  for example in examples:
    answer = ids(tokenizer, example["suffix"]) + 1  # eos
    prompt = 1 + ids(tokenizer, example["prefix"]) + 1  # bos, newline
    expected.append((prompt, answer, answer, False))
  assert sorted(found.counts.values()) == sorted(expected)
  assert len({row.prompt for row in found.counts.values()}) > 5
  assert (found.errors, found.notes) == ({}, [])


def test_a_prompt_alone_is_counted_with_the_answer_it_should_get(
  make, look, tokenizer
):
  options = {"decodes": True, "max_answer": 3, "answer_key": "answers"}
  changes = {
    0: {"answers": ["1 1 1 1", "1"]},  # the shortest counts
    1: {"answers": "1" * 3},
    2: {"answers": "1" * 4},
    3: {"answers": [3, 4]},
    4: {"answers": 5},
  }
  found = look(make(changes, train=False, dataset=options, size=6))
  rows = sorted(found.counts.values())
  one, three, four = (ids(tokenizer, "1" * n) + 1 for n in (1, 3, 4))
  assert len({one, three, four}) == 3
  assert [row.answer for row in rows] == [one, three, four, None, None, None]
  assert [row.cut for row in rows] == [
    length is not None and length > 4
    for length in [one, three, four, *[None] * 3]
  ]
  assert {row.supervised for row in rows} == {None}


def test_as_many_rows_as_asked_for_always_the_same(make, look, monkeypatch):
  dataset = make(size=1009, text_len=2000)
  asked = []
  read = Source.__getitem__
  monkeypatch.setattr(
    Source, "__getitem__", lambda self, i: asked.append(i) or read(self, i % 7)
  )
  assert len(look(dataset, num=17).counts) == 17
  first = asked.copy()
  assert len(set(first)) == 17
  assert max(first) > 500
  # As any other process.
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  asked.clear()
  look(dataset, num=17)
  assert asked == first
  limited = dataclasses.replace(dataset, limit=11)
  asked.clear()
  look(limited)
  assert sorted(asked) == list(range(11))


def test_when_the_time_is_over_two_have_been_looked_at(make, look):
  assert len(look(make(), seconds=-1.0).counts) == datasets.NUM_WITH_IMAGE == 2
  assert len(look(make(), num=0).counts) == 2
  assert len(look(make(size=1), seconds=-1.0).counts) == 1


def test_ops_see_what_they_see_in_training(make, look):
  def op(example, rng):
    assert example["_epoch"] == 0
    assert example["_where"] == f"{example['_index']}.json"
    return {**example, "prefix": f"{rng.integers(1000)}"}

  dataset = make(ops=(op,), dataset={"trains": True})
  expected = {
    len(dataset.preprocess.tokenizer.encode(str(rng.integers(1000)))) + 2
    for rng in map(np.random.default_rng, range(13))
  }
  assert {row.prompt for row in look(dataset).counts.values()} == expected
  # Nor does evaluation give it.
  with pytest.raises(ValueError, match=r"op .*: KeyError: '_epoch'"):
    look(dataclasses.replace(dataset, trains=False))


def shift(row, example):
  """All ones, as of a mask that nobody has made."""
  row["mask_ar"][:] = 0


def tell(row, example):
  """Writes the answer where the prompt begins."""
  row["text"][0] = 5 + len(example["suffix"])


def supervise_padding(row, example):
  row["mask_loss"] = (row["mask_ar"] == 1).astype(np.int32)


def supervise_pad_ids(row, example):
  row["mask_loss"] = (row["mask_ar"] == 1).astype(np.int32)
  row["mask_input"][:] = True


def hide_answer(row, example):
  row["mask_input"] = row["mask_ar"] == 0


def supervise_nothing(row, example):
  row["mask_loss"][:] = 0


def blank(row, example):
  row["image"] = np.full_like(row["image"], np.nan)


def widen(row, example):
  row["text"] = row["text"].astype(np.int64)


def shorten(row, example):
  if row["image"].shape[0] > 1:
    row["image"] = row["image"][1:]


FAULTS = {
  "the forkme evaluation": (
    {"dataset": {"decodes": True}},
    r"^train.main: \d+.json: the answer leaks into the prompt: without it, text"
    r" of the prompt is another; .*evaluation layout \(train=False\)$",
  ),
  "the same, by another key": (
    {
      "changes": {i: {"a": "1"} for i in range(13)},
      "dataset": {"decodes": True, "answer_key": "a"},
    },
    "the answer leaks into the prompt",
  ),
  "an answer in the prompt": (
    {"fault": tell},
    r"^train.main: \d+.json: the answer leaks into the prompt: without it, text"
    r" of the prompt is another$",
  ),
  "an answer in an evaluation": (
    {"fault": tell, "train": False, "dataset": {"decodes": True}},
    r"json: the answer leaks .* another$",
  ),
  "an answer under another key": (
    {
      "fault": lambda row, example: tell(row, {"suffix": example["a"]}),
      "changes": {i: {"a": "1"} for i in range(13)},
      "train": False,
      "dataset": {"answer_key": "a"},
    },
    "the answer leaks into the prompt",
  ),
  "no autoregression": (
    {"fault": shift},
    r"^train.main: (\d+).json: position \d+ is to predict the token at \d+ and "
    r"sees it; mask_ar must be 1 wherever mask_loss is$",
  ),
  "padding supervised": (
    {"fault": supervise_padding},
    r"\d+.json: mask_loss supervises padding, at position \d+; it must end ",
  ),
  "padding that passes for tokens": (
    {"fault": supervise_pad_ids},
    r"\d+.json: mask_loss supervises padding, at position \d+; it must end ",
  ),
  "tokens that pass for padding": (
    {"fault": hide_answer},
    r"\d+.json: mask_loss supervises padding, at position \d+; it must end ",
  ),
  "nothing supervised": (
    {"fault": supervise_nothing},
    "^train.main: none of 13 examples looked at has a supervised token; mask",
  ),
  "no image": (
    {"fault": blank},
    r"^train.main: \d+.json: the preprocessed image is not finite",
  ),
  "another dtype": (
    {"fault": widen},
    r"\d+.json: the row has .*text int64\[42\], a row of padding .*text "
    r"int32\[42\]; they must be alike",
  ),
  "another size": (
    {"fault": shorten},
    r"has image float32\[27, 28, 3\], .* image float32\[28, 28, 3\]",
  ),
}


@pytest.mark.parametrize("case", FAULTS)
@pytest.mark.parametrize("skips", [False, True])
def test_a_fault_of_the_preprocess(make, look, case, skips):
  """No row of it is worth anything: it is not skipped either."""
  options, message = FAULTS[case]
  dataset = {"skips": skips, **options.get("dataset", {})}
  with pytest.raises(ValueError, match=message) as caught:
    look(make(**{**options, "dataset": dataset}))
  assert "\n" not in str(caught.value)


@dataclasses.dataclass(frozen=True)
class OnesForPadding(preprocess.Preprocess):
  key: str = "mask_loss"

  def padding(self):
    row = super().padding()
    return {**row, self.key: np.ones_like(row[self.key])}


@pytest.mark.parametrize("key", ["mask_loss", "mask_input"])
def test_a_row_of_padding_counts_for_nothing(make, look, tokenizer, key):
  dataset = make()
  faulty = OnesForPadding(tokenizer, res=28, text_len=41, train=True, key=key)
  dataset = dataclasses.replace(dataset, preprocess=faulty)
  with pytest.raises(
    ValueError, match=f"^train.main: {key} of a row of padding is not all 0"
  ):
    look(dataset)


BAD = {
  "no suffix": (
    {"suffix": None, "sufix": "1"},
    'missing key "suffix", found .*Did you mean "sufix"',
  ),
  "no prefix": ({"prefix": None}, 'missing key "prefix"'),
  "no text": ({"suffix": 7}, 'expected a text under "suffix", found 7'),
  "no image": ({"image": None}, 'missing key "image"'),
  "too long": (
    {"prefix": "dot" * 99},
    r"prompt and answer have \d+ \+ 6 tokens, text_len 41 has room for 42",
  ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_example_ends_the_run_or_is_skipped(make, look, case):
  fields, message = BAD[case]
  dataset = make({4: fields, 9: fields})
  start = "2 of 13 examples looked at"
  with pytest.raises(
    ValueError,
    match=f"^train.main: {start} cannot be used, the first: 4.json: {message}",
  ):
    look(dataset)
  found = look(dataclasses.replace(dataset, skips=True))
  assert (len(found.counts), set(found.errors)) == (11, {4, 9})
  (note,) = found.notes
  assert re.match(f"{start} will be skipped, such as 4.json: {message}", note)


def test_where_all_is_bad_the_run_itself_tells(make, look):
  dataset = make({i: {"suffix": 7} for i in range(13)}, dataset={"skips": True})
  (note,) = look(dataset).notes
  assert note.startswith("13 of 13 examples looked at will be skipped, such as")


def test_images_are_read_of_the_first_few_alone(make, look, image):
  drawn = np.random.default_rng(0).choice(13, 13, replace=False).tolist()
  seen, unseen = drawn[:2], drawn[2:]
  cut = {"image": image[:-99]}
  assert look(make(dict.fromkeys(unseen, cut))).errors == {}
  for index in seen:
    with pytest.raises(
      ValueError, match=f"1 of 13 .* the first: {index}.json: truncated or dam"
    ):
      look(make({index: cut}))


@pytest.mark.parametrize("kind", [list, tuple, "array"])
def test_frames_are_looked_at(make, look, image, kind):
  frames = [image] * 3
  if kind == "array":
    frames = np.zeros((3, 5, 7, 3), np.uint8)
  elif kind is tuple:
    frames = tuple(frames)
  found = look(make({i: {"image": frames} for i in range(13)}, frames=3))
  assert sorted(found.counts.values()) == sorted(look(make()).counts.values())
  one_more = make({5: {"image": [image] * 4}}, frames=3)
  with pytest.raises(ValueError, match=r"13 of 13 .* expected 3 frames under"):
    look(one_more)


def test_what_is_cut_is_counted(make, look):
  rows = look(make(size=7)).counts.values()
  room = max(row.prompt for row in rows) + 1  # for one token of the answer
  beyond = sum(row.prompt + row.answer > room for row in rows)
  assert 1 < beyond < 7
  dataset = make(size=7, too_long="truncate", text_len=room - 1)
  assert sum(row.cut for row in look(dataset).counts.values()) == beyond


def test_answers_without_a_token_are_noted(make, look):
  def some(row, example):
    if example["suffix"] != "1":
      supervise_nothing(row, example)

  # Suffixes are "1" to "11111", three of thirteen the first.
  found = look(make(fault=some))
  assert "10 of 13 examples have no supervised token" in found.notes


def test_few_supervised_tokens_are_noted(make, look):
  mean = np.mean([row.supervised for row in look(make()).counts.values()])
  assert look(make(text_len=int(99 * mean))).notes == []
  (note,) = look(make(text_len=int(101 * mean) + 1)).notes
  assert note.startswith("only 0.99% of text_len is supervised; if the rest")


def mix(example, rng, *choices):
  """A prompt of choices, in random order."""
  choices = ", ".join(rng.permutation(choices))
  return {**example, "prefix": f"{example['prefix']} {choices}"}


# Op -> the field that is told to be copied.
LEAKS = {
  "appended": (text_ops.Format("{prefix} {suffix}"), "suffix"),
  "in capitals": (
    lambda e, rng: {**e, "prefix": e["suffix"].upper()},
    "suffix",
  ),
  "from another field": (text_ops.Format("dot {b}", "{b}"), "b"),
  "one of several": (
    lambda e, rng: {**e, "prefix": e["d"][1], "suffix": e["d"][1]},
    "d",
  ),
  "all of several": (
    lambda e, rng: mix({**e, "suffix": e["d"][0]}, rng, *e["d"]),
    None,
  ),
  "a choice of others": (
    lambda e, rng: mix(e, rng, "two", "three", e["suffix"]),
    "suffix",
  ),
  "a part of the answer": (text_ops.Format("dot {b}", "1 {b}"), None),
  "another of several": (
    lambda e, rng: {**e, "prefix": e["d"][0], "suffix": e["d"][1]},
    None,
  ),
  "its length": (
    lambda e, rng: {**e, "prefix": "one" * len(e["suffix"])},
    None,
  ),
  "found nowhere": (
    lambda e, rng: {**e, "prefix": "dot " * "21111111".index(e["suffix"])},
    None,
  ),
  "none": (text_ops.Lower("prefix"), None),
}


@pytest.mark.parametrize("case", LEAKS)
@pytest.mark.parametrize("decodes", [True, False])
def test_an_op_that_copies_the_answer_is_noted(make, look, case, decodes):
  op, field = LEAKS[case]
  changes = {i: {"b": "one", "d": ["two", "one"]} for i in range(13)}
  dataset = {"decodes": decodes}
  dataset = make(
    changes, ops=(op,), train=not decodes, dataset=dataset, text_len=99
  )
  notes = look(dataset).notes
  assert len(notes) == (field is not None)
  for note in notes:
    assert re.match(
      f'an op writes "{field}", which is the answer, into the prompt, as of '
      r"\d+.json; right only if it stands there among others to choose from$",
      note,
    )


def test_an_evaluator_is_looked_at_as_it_works(make, tokenizer, image):
  changes = {i: {"a": "1 1"} for i in range(13)}
  evaluator = evals.Generate(
    "val",
    Source(image, changes),
    make(train=False).preprocess,
    tokenizer,
    batch_size=8,
    max_decode_len=9,
    answer_key="a",
    limit=7,
  )
  (dataset,) = inputs.evaluation_datasets(
    tasks.TASKS["next_token"], [evaluator]
  )
  rows = checks.look(dataset, tokenizer).counts.values()
  assert len(rows) == 7
  assert {row.answer for row in rows} == {ids(tokenizer, "1 1") + 1}


class NeedsPairs(metrics.Metric):
  group_key = "pair"

  def rows(self, predictions, examples, *, answer_key="suffix"):
    raise ValueError("examples come in pairs")


@pytest.mark.parametrize(
  ("metric", "fields", "message"),
  [
    ("exact_match", {"suffix": None}, r'^evals.val: 6.json: .*"suffix"'),
    ("vqav2", {"question_type": "a"}, "^evals.val: "),
    ("exact_match", {}, None),
    (NeedsPairs(), {}, None),
    (lambda predictions, examples, answer_key: {}, {"suffix": None}, None),
    (None, {"suffix": None}, None),
  ],
)
def test_a_metric_must_find_what_it_reads(
  make, tokenizer, image, metric, fields, message
):
  evaluator = evals.Generate(
    "val",
    Source(image, {6: fields}),
    make(train=False).preprocess,
    tokenizer,
    batch_size=8,
    max_decode_len=9,
    metric=metric,
  )
  (dataset,) = inputs.evaluation_datasets(
    tasks.TASKS["next_token"], [evaluator]
  )
  if message is None:
    assert len(checks.look(dataset, tokenizer).counts) == 13
  else:
    with pytest.raises(ValueError, match=message) as caught:
      checks.look(dataset, tokenizer)
    assert "\n" not in str(caught.value)


SIZE = r"^evals.val: \d+.json: found a list of 2, .* \"height\" and \"width\""


def test_detection_must_know_how_large_an_image_is(make, tokenizer, image):
  evaluator = evals.Generate(
    "val",
    Source(image, {i: {"suffix": ""} for i in range(13)}),
    make(train=False).preprocess,
    tokenizer,
    batch_size=8,
    max_decode_len=9,
    metric="detection",
  )
  (dataset,) = inputs.evaluation_datasets(
    tasks.TASKS["next_token"], [evaluator]
  )
  assert len(checks.look(dataset, tokenizer).counts) == 13
  two = {"image": [image, image]}
  source = Source(image, {i: two | {"suffix": ""} for i in range(13)})
  through = dataclasses.replace(dataset.preprocess, frames=2)
  dataset = dataclasses.replace(dataset, source=source, preprocess=through)
  with pytest.raises(ValueError, match=SIZE) as caught:
    checks.look(dataset, tokenizer)
  assert "\n" not in str(caught.value)


def test_the_rule_of_masks_is_that_of_attention(make, look):
  """All rows of five tokens, against the mask that the model attends with."""
  length = 5
  bits = np.array(list(itertools.product((0, 1), repeat=length)), np.int32)
  query, key = np.indices((length, length))
  there = np.ones((1, length), bool)
  for mask_ar in bits:
    seen = np.asarray(masks.make_mask(there, mask_ar[None]).dense()[0])
    for supervised in bits[1:16]:  # nothing stands before the first token

      def fault(row, example, mask_ar=mask_ar, supervised=supervised):
        row.update(mask_ar=mask_ar, mask_loss=supervised, mask_input=there[0])
        row["text"] = np.full(length, 9)

      leaks = (seen & (query < key))[:, supervised == 1].any()
      message = "and sees it" if leaks else "they must be alike to be stacked"
      with pytest.raises(ValueError, match=message):
        look(make(fault=fault, size=1))


def test_what_the_check_of_masks_promises(tiny, make, look):
  """A later token of an answer changes no earlier logits; else it would."""
  config = tiny.config()
  model = paligemma_model.make(**config.model.to_dict())
  params = tree.unflatten(npz.load(config.init))
  dataset = make(size=1)
  example = {**dataset.source[0], "suffix": "1357"}
  row = dataset.preprocess(example, np.random.default_rng(0))
  look(dataset)
  first = int(row["mask_loss"].argmax())
  changed = first + 2  # "5" becomes "7"
  other = {**row, "text": row["text"].copy()}
  other["text"][changed] = row["text"][changed + 1]

  @jax.jit
  def apply(row):
    row = {key: value[None] for key, value in row.items()}
    logits, _ = model.apply(
      {"params": params},
      row["image"],
      row["text"][:, :-1],
      row["mask_ar"][:, :-1],
      input_mask=row["mask_input"][:, :-1],
    )
    return logits[0]

  np.testing.assert_array_equal(apply(row)[:changed], apply(other)[:changed])
  assert (apply(row)[changed] != apply(other)[changed]).any()
  for spoilt in (row, other):
    shift(spoilt, example)
  position = f"position {first - 1} is to predict the token at {first} and sees"
  with pytest.raises(ValueError, match=position):
    look(make(size=1, fault=shift))
  assert (apply(row)[:first] != apply(other)[:first]).any()


def test_all_sources_stand_in_one_table(tiny):
  config = tiny.config()
  config.train.sources.extra = {
    "kind": "jsonl",
    "path": str(tiny.folder / "val.jsonl"),
    "weight": 0.5,
  }
  config.evals.val.limit = 3
  plan, tok, evaluators = start(config)
  lines = checks.check(plan, tok, evaluators).splitlines()
  found = {line.split()[0]: re.split("  +", line)[1:] for line in lines}
  assert found["data"] == [*checks._HEAD[1:], "drawn"]
  names = ["train.main", "train.extra", "evals.pplx", "evals.val"]
  assert sorted(found) == sorted(["data", *names])
  assert [found[name][:2] for name in names] == [
    ["13", "13"],
    ["5", "5"],
    ["5", "5"],
    ["5", "3"],
  ]
  answers = [f"{i} dots" if i % 2 else f"{i}" for i in range(13)]
  lengths = sorted(len(tok.encode(answer)) + 1 for answer in answers)
  assert found["train.main"][3:] == [
    f"{lengths[6]}/{lengths[-1]}/{lengths[-1]}",
    "19",
    "0",
    f"{sum(lengths) / 13 / 19:.1%}",
    "66.7%",
  ]
  assert found["train.extra"][-1] == "33.3%"
  assert found["evals.val"][5:] == ["1", "-"]  # "1 dots" in 3 tokens


def test_bad_examples_are_skipped_where_the_config_says_so(tiny):
  config = tiny.config({"train.on_bad": "skip"}, text_len=15)
  config.train.ops = (text_ops.Format("{prefix}" + " is this" * 5),)
  config.evals = {}
  plan, tok, evaluators = start(config)
  bad = r"train.main: \d+ of 13 examples looked at"
  note = (
    rf"\nnote: {bad} will be skipped, such as .*train.jsonl:\d+: prompt and"
  )
  assert re.search(note, checks.check(plan, tok, evaluators))
  config.train.on_bad = "stop"
  with pytest.raises(ValueError, match=rf"^{bad} cannot be used, the first: "):
    checks.check(plan, tok, evaluators)


def test_the_answer_before_the_place_of_the_answer_is_refused(tiny):
  """An evaluator that decodes behind what it should say."""
  plan, tok, evaluators = start(tiny.config())
  leaking = [
    (
      dataclasses.replace(
        evaluator,
        preprocess=dataclasses.replace(evaluator.preprocess, train=True),
      ),
      every,
    )
    for evaluator, every in evaluators
  ]
  with pytest.raises(
    ValueError,
    match=r"^evals.val: \S*val.jsonl:\d: the answer leaks .* \(train=False\)$",
  ):
    checks.check(plan, tok, leaking)


def start(config):
  plan = Plan(config)
  tok = plan.task.make_tokenizer(config, plan.model)
  return plan, tok, inputs.make_evaluators(config, tok, **plan.sizes)


def test_weights_of_another_resolution_are_noted(tiny):
  plan, tok, _ = start(tiny.config())
  assert checks.weight_notes(plan, tok) == []
  config = tiny.config(res=42)
  plan, tok, evaluators = start(config)
  note = (
    f"{config.init} has 4 image positions, res 42 makes 9: their embedding is "
    "resampled"
  )
  assert checks.weight_notes(plan, tok) == [note]
  assert checks.check(plan, tok, evaluators).endswith(f"\nnote: {note}")


def test_random_weights_go_with_everything(tiny):
  plan, tok, _ = start(tiny.config(init=""))
  assert checks.weight_notes(plan, tok) == []


@pytest.mark.parametrize(
  ("rows", "ids", "first", "message"),
  [
    (1801, 1792, 640, "has 1792 ids, .* a vocabulary of 1801: was it trained"),
    (1792, 1792, 640, None),
    (257152, 257152, 256000, None),
    (257152, 257152, 7, "gives <loc0000> the id 7, published .* 256000: was"),
  ],
)
def test_another_tokenizer_is_noted(
  tiny, monkeypatch, rows, ids, first, message
):
  plan, _, _ = start(tiny.config())
  table = types.SimpleNamespace(shape=(rows, 16))
  opened = types.SimpleNamespace(leaves={"llm/embedder/input_embedding": table})
  monkeypatch.setattr(formats, "open", lambda path: opened)
  tok = types.SimpleNamespace(vocab_size=ids, loc_id=lambda i: first + i)
  notes = checks.weight_notes(plan, tok)
  assert len(notes) == (message is not None)
  for note in notes:
    assert re.search(message, note)


@pytest.fixture
def no_compiler(monkeypatch):
  def fail(plan, text_len=None):
    raise AssertionError("compiled")

  monkeypatch.setattr(Plan, "compile_step", fail)


@pytest.mark.usefixtures("no_compiler")
def test_weights_that_do_not_fit_are_told_before_anything_is_compiled(
  tiny, main, tmp_path
):
  config = tiny.config()
  config.model.img.mlp_dim = 21
  line = main(config, tmp_path / "run")
  assert line.startswith(f"error: {config.init}: does not fit the model, 3 lea")


@pytest.mark.usefixtures("no_compiler")
def test_a_mistake_is_told_before_anything_is_compiled(tiny, main, tmp_path):
  config = tiny.config()
  config.evals.val.ops = (text_ops.Format("{question}"),)
  assert re.match(
    r"error: evals.val: 5 of 5 examples looked at cannot be used, the first: "
    r'\S*val.jsonl:1: missing key "question", found',
    main(config, tmp_path / "run"),
  )
  assert not (tmp_path / "run").exists()
  with pytest.raises(AssertionError, match="compiled"):
    main(tiny.config(), tmp_path / "run")


def test_a_run_and_a_dry_run_say_the_same(
  tiny, main, tmp_path, capsys, monkeypatch
):
  config = tiny.config(res=42)
  table = checks.check(*start(config))
  assert "note: " in table
  monkeypatch.setattr(Plan, "compile_step", lambda plan, text_len=None: None)
  monkeypatch.setattr(Plan, "describe", lambda *_, **__: "the plan")
  nothing = TrainState(np.zeros(()), {}, (), None)
  monkeypatch.setattr(train.start, "start_or_resume", lambda *_: (nothing, {}))
  monkeypatch.setattr(loop.Loop, "run", lambda *_: ("finished", 0))

  assert main(config, tmp_path, dry_run=True) is None
  assert capsys.readouterr().out == f"the plan\n{table}\n"
  assert not list(tmp_path.iterdir())
  assert main(config, tmp_path) is None
  said = capsys.readouterr().err
  assert f"\n{table}\n" in said
  assert "\nthe plan\n" in said


def test_an_answer_may_begin_with_what_is_no_target(make, look):
  fields = {"suffix": "dot 1", "unsupervised": ((0, 3),)}
  found = look(make(dict.fromkeys(range(13), fields)))
  assert len(found.counts) == 13
