"""JSON that is read in pieces is what json.loads makes of it whole."""

import io
import json

import pytest

from scripts.datasets import json_stream
from scripts.datasets.json_stream import JsonStream

VALUES = [
  {"a": [1, -2.5e3, 12345678901234567890], "b\\": 'é"\n\u2028', "": {}},
  [],
  [[], {}, [None, True, False]],
  "\ud83d\ude00 \\",
  1234567,
  0.5,
  3e-7,
]


def opened(text):
  return JsonStream(io.StringIO(text), "a.json")


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 3])
def test_any_pieces_make_the_same_values(monkeypatch, chunk, indent):
  monkeypatch.setattr(json_stream, "_CHUNK", chunk)
  text = json.dumps(VALUES, indent=indent)
  stream = opened(text)
  assert [stream.value() for _ in stream.members()] == json.loads(text)
  named = dict(enumerate(VALUES))
  text = json.dumps(named, indent=indent, ensure_ascii=False)
  stream = opened(text)
  found = {name: stream.value() for name in stream.members()}
  assert found == json.loads(text)
  # What is skipped is as long as what is read.
  stream = opened(text)
  for name in stream.members():
    if name == "4":
      assert stream.value() == VALUES[4]
    else:
      stream.skip()


def test_only_a_piece_is_in_memory(monkeypatch):
  monkeypatch.setattr(json_stream, "_CHUNK", 64)
  stream = opened(json.dumps([{"a": i} for i in range(1000)]))
  longest = 0
  for _ in stream.members():
    stream.value()
    longest = max(longest, len(stream._text))
  assert longest < 150


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", "character 0: the file ends too early"),
    ("[1, 2", "character 5: the file ends too early"),
    ('[1, "ab', r"Unterminated string starting at; is the file complete\?"),
    ("[1 2]", "character 3: expected ,, found '2'"),
    ('{"a" 1}', "character 5: expected :, found '1'"),
    ("7", r"character 0: expected \[ or {, found '7'"),
    ('[{"a": nul, "b": 12345678901}]', "character 7: Expecting value"),
    (f"[{'[' * 99_999}]", "nested too deep"),
  ],
)
def test_what_is_malformed_says_where(text, message):
  stream = opened(text)
  with pytest.raises(
    ValueError, match=f"^a.json: malformed JSON at .*{message}"
  ):
    for _ in stream.members():
      stream.value()
