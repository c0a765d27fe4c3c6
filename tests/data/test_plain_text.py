"""Texts alone: what is learned of each kind of line, and what is refused."""

import json
import re

import numpy as np
import pytest

from paligemma.data import plain_text, preprocess, sources
from paligemma.data import tokenizer as tokenizer_lib

TEXT_LEN = 29
TURNS = [
  {"role": "user", "content": "what digit"},
  {"role": "model", "content": "one"},
  {"role": "user", "content": "red"},
  {"role": "model", "content": "two"},
]


@pytest.fixture(scope="module")
def gemma(sentencepiece_model, tmp_path_factory):
  """A tokenizer with pieces for turns, and without locations, as Gemma's."""
  path = tmp_path_factory.mktemp("gemma") / "tokenizer.model"
  pieces = ("<start_of_turn>", "<end_of_turn>")
  engine = tokenizer_lib.engine(sentencepiece_model, "small")
  path.write_bytes(engine.with_pieces(pieces, path).data)
  return tokenizer_lib.Tokenizer(path, plain=True)


def make(tokenizer, text_len=TEXT_LEN, **options):
  return preprocess.Preprocess(
    tokenizer, None, text_len, **{"train": True, **options}
  )


def arrays(tokenizer, example, **options):
  example = {**example, "_where": "a.jsonl:7"}
  return make(tokenizer, **options)(example, np.random.default_rng(0))


def learned(tokenizer, row):
  """The text of the supervised tokens, eos as |."""
  ids = row["text"][row["mask_loss"] == 1].tolist()
  return "".join("|" if i == 1 else tokenizer.decode([i]) for i in ids)


def used(row):
  return row["text"][row["mask_input"]].tolist()


def test_all_of_a_text_is_learned(gemma):
  row = arrays(gemma, {"text": "what digit\n"})
  assert row.keys() == {"text", "mask_ar", "mask_input", "mask_loss"}
  assert used(row) == [2, *gemma.encode("what digit\n"), 1]
  assert learned(gemma, row) == "what digit\n|"
  assert (row["mask_ar"] == 1).all()


def test_a_suffix_is_learned_behind_its_prefix(gemma):
  row = arrays(gemma, {"prefix": "what digit\n", "suffix": "one"})
  ids = [2, *gemma.encode("what digit\n"), *gemma.encode("one"), 1]
  assert used(row) == ids
  assert learned(gemma, row) == "one|"
  assert (row["mask_ar"] == 1).all()
  prompt = arrays(
    gemma, {"prefix": "what digit\n", "suffix": "one"}, train=False
  )
  assert used(prompt) == ids[: len(used(prompt))]
  assert "mask_loss" not in prompt and (prompt["mask_ar"] == 1).all()
  alone = arrays(gemma, {"suffix": "one"})
  np.testing.assert_array_equal(
    alone["text"], arrays(gemma, {"text": "one"})["text"]
  )


def test_the_turns_of_the_model_are_learned(gemma):
  row = arrays(gemma, {"messages": TURNS}, text_len=60)
  assert learned(gemma, row) == "one<end_of_turn>two<end_of_turn>|"
  text = gemma.decode(used(row))
  assert text.startswith("<start_of_turn>user\nwhat digit<end_of_turn>\n<start")
  prompt = arrays(gemma, {"messages": TURNS}, text_len=60, train=False)
  assert used(prompt) == used(row)[: len(used(prompt))]
  assert gemma.decode(used(prompt)).endswith("<start_of_turn>model\n")
  example = {"messages": TURNS, "_where": "a.jsonl:7"}
  read = plain_text.read(example, gemma, train=False)
  assert read["suffix"] == "two"  # decoding stops at the end of the turn


@pytest.mark.parametrize(
  ("example", "message"),
  [
    ({"text": " \n"}, "the text is empty"),
    ({"text": 5}, 'expected a text under "text", found 5'),
    ({"text": "red " * 30}, "prompt and answer have 1 + "),
    (
      {"prefix": "red", "label": "blue"},
      'expected one of "text", "suffix" (with or without "prefix") and '
      '"messages", found the keys prefix, label',
    ),
    ({}, 'expected one of "text", "suffix" (with or without "prefix") and '),
    (
      {"text": "red", "suffix": "blue"},
      'expected one of "text", "suffix" (with or without "prefix") and '
      '"messages", found text and suffix',
    ),
    ({"messages": []}, "messages has 0 turns"),
    (
      {"image": b"", "text": "red"},
      "has an image, but the model has no image tower; read texts with kind",
    ),
  ],
)
def test_what_is_refused(gemma, example, message):
  with pytest.raises(
    ValueError, match="^" + re.escape(f"a.jsonl:7: {message}")
  ) as caught:
    arrays(gemma, example)
  assert "\n" not in str(caught.value)


def test_a_long_text_may_be_cut(gemma):
  row = arrays(gemma, {"text": "red " * 30}, too_long="truncate")
  assert row["mask_input"].all() and row["truncated"] == 1


def test_turns_need_their_pieces(tokenizer):
  message = "a.jsonl:7: messages need <start_of_turn> as one piece of the voc"
  with pytest.raises(ValueError, match=message):
    arrays(tokenizer, {"messages": TURNS})


def test_a_plain_file_has_no_locations(gemma):
  assert len(gemma.encode("<loc0003>")) > 1


def write(path, *lines):
  path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
  return path


def test_lines(tmp_path):
  path = write(tmp_path / "a.jsonl", {"text": "red", "id": 5}, {"image": "1"})
  source = sources.make("text_jsonl", path=path)
  assert source[0] == {"text": "red", "id": 5, "_where": f"{path}:1"}
  message = f'{path}:2: has an "image", kind "text_jsonl" is of texts alone; '
  with pytest.raises(ValueError, match="^" + re.escape(message)):
    source[1]
  first, second = sources.without_images(source)
  assert first == source[0] and message in str(second)


def test_equal_lines_are_in_one_part(tmp_path):
  path = write(tmp_path / "a.jsonl", *({"text": f"{i % 7}"} for i in range(29)))
  parts = {
    part: {
      x["text"]
      for x in sources.without_images(
        sources.TextJsonl(path, val_share=0.3, part=part, seed=3)
      )
    }
    for part in ("train", "val")
  }
  assert parts["train"] | parts["val"] == {str(i) for i in range(7)}
  assert parts["val"] and not parts["train"] & parts["val"]
  message = "val_share 0.01 of 29 texts of 7 different ones is 0, which leaves"
  with pytest.raises(ValueError, match=re.escape(f"{path}: {message}")):
    sources.TextJsonl(path, val_share=0.01)
