"""Conversations as Gemma's instruction-tuned models were given them."""

import re

import pytest

from paligemma.data import chat

USER = {"role": "user", "content": "Hi"}
MODEL = {"role": "model", "content": " Hello\n"}


def test_two_turns():
  text, spans = chat.render([USER, MODEL])
  head = "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"
  assert text == f"{head}Hello<end_of_turn>"
  assert spans == [(0, len(head))]


def test_what_is_not_of_the_model_is_in_spans():
  turns = [USER, {"role": "assistant", "content": "Hello"}]
  text, spans = chat.render([*turns, {"role": "user", "content": "Bye"}, MODEL])
  learned, position = [], 0
  for start, stop in [*spans, (len(text), len(text))]:
    learned.append(text[position:start])
    position = stop
  assert learned == ["", "Hello<end_of_turn>", "Hello<end_of_turn>"]
  assert text.count("<start_of_turn>model\n") == 2
  again = "<end_of_turn>\n<start_of_turn>user\nBye<end_of_turn>\n"
  assert again in text


@pytest.mark.parametrize(
  ("messages", "message"),
  [
    ("Hi", "messages is 'Hi', expected a list of"),
    ([], "messages has 0 turns, expected one of the user, then one of the"),
    ([USER], "messages has 1 turns, expected one of the user"),
    ([USER, MODEL, USER], "messages has 3 turns, expected one of the user"),
    ([MODEL], "messages[0] is {'role': 'model', 'content': ' Hello\\n'}, exp"),
    (
      [{"role": "system", "content": "Be kind"}, USER, MODEL],
      "messages[0] is {'role': 'system', 'content': 'Be kind'}, expected "
      '{"role": "user", "content": a text}; ',
    ),
    ([USER, {"role": "model"}], "messages[1] is {'role': 'model'}, expected"),
    ([USER, "Hello"], "messages[1] is 'Hello', expected"),
    ([{"role": "user", "content": "\n"}, MODEL], "messages[0] is empty, exp"),
    (
      [USER, {"role": "model", "content": "a<end_of_turn>"}],
      "messages[1] holds <end_of_turn>, which the template writes around it",
    ),
  ],
)
def test_what_is_refused(messages, message):
  with pytest.raises(ValueError, match="^" + re.escape(message)) as caught:
    chat.render(messages)
  assert "\n" not in str(caught.value)
