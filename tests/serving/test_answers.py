"""From ids to text as it grows, until an answer ends."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from paligemma.decoding import grammar
from paligemma.decoding.grammar import automaton
from paligemma.serving import answers, request

EOS, TURN = 1, 9


class Bytes:
  """A tokenizer whose ids are bytes."""

  def decode(self, ids):
    return bytes(ids).decode("utf-8", "replace")


def run(text, *, ends=(EOS,), more=(EOS,), **options):
  """Returns what is told of each token, and the end."""
  told, ended = [], []
  asked = request.Request("what", **options)
  prompt = answers.Prompt((), {}, 0, 7, set(ends), Bytes())
  answer = answers.Answer(asked, told.append, ended.append, prompt)
  for id in [*text.encode(), *more]:
    if reason := answer.add(id, -0.5, [3, 4, 5], [-1.0, -2.0, -3.0]):
      answer.end(reason)
      break
  return told, ended[0] if ended else None


def test_text_is_told_token_by_token():
  told, end = run("a cat")
  assert [x.text for x in told] == ["a", " ", "c", "a", "t", ""]
  assert [x.id for x in told] == [*b"a cat", EOS]
  assert end == request.End("stop", "a cat", 7, 6)


def test_a_character_is_told_when_its_bytes_are_complete():
  told, end = run("né🐈")
  assert [x.text for x in told] == ["n", "", "é", "", "", "", "🐈", ""]
  assert end.text == "né🐈"


@pytest.mark.parametrize("ended", [True, False])
def test_bytes_that_stay_incomplete_are_told_at_the_end(ended):
  cat = "🐈".encode()[:2]
  more = (*cat, EOS) if ended else cat
  told, end = run("a", more=more, max_tokens=3 + ended)
  assert "".join(x.text for x in told) == end.text == "a\ufffd"
  assert end.reason == ("stop" if ended else "length")


@pytest.mark.parametrize(
  ("text", "stop", "pieces", "kept"),
  [
    ("one.two", (".",), ["o", "n", "e", ""], "one"),
    ("a\n\nb", ("\n\n",), ["a", "", ""], "a"),
    ("a\nb", ("\n\n",), ["a", "", "\nb", ""], "a\nb"),
    ("aab", ("ab", "b"), ["", "a", ""], "a"),
    ("aaab", ("aac", "zz"), ["", "", "a", "aab", ""], "aaab"),
    ("xyz", ("yz!", "z"), ["x", "", "y"], "xy"),
    ("ab", ("abc",), ["", "", "ab"], "ab"),
  ],
)
def test_nothing_of_a_stop_text_is_told(text, stop, pieces, kept):
  told, end = run(text, stop=stop)
  assert [x.text for x in told] == pieces
  assert end.text == "".join(pieces) == kept
  assert end.reason == "stop"
  assert end.tokens == len(told)


def test_the_last_token_counts_towards_the_limit():
  told, end = run("abc", max_tokens=3)
  assert end == request.End("length", "abc", 7, 3)
  assert len(told) == 3


def test_a_turn_ends_an_answer_too():
  for last in (EOS, TURN):
    _, end = run("ab", ends=(EOS, TURN), more=(last, 65))
    assert end == request.End("stop", "ab", 7, 3)


def test_as_many_of_the_most_probable_tokens_are_told_as_asked():
  for count, top in ((0, ()), (2, ((3, -1.0), (4, -2.0)))):
    told, _ = run("a", top_log_probs=count)
    assert told[0].top == top
    assert told[0].log_prob == -0.5


def test_an_answer_is_over_when_nobody_waits(monkeypatch):
  now = [10.0]
  clock = types.SimpleNamespace(monotonic=lambda: now[0])
  monkeypatch.setattr(answers, "time", clock)
  prompt = answers.Prompt((), {}, 0, 7, {EOS}, Bytes())
  asked = request.Request("what", deadline=3.0)
  answer = answers.Answer(asked, None, None, prompt)
  now[0] = 13.0
  assert answer.why_over() is None
  now[0] = 13.1
  assert answer.why_over() == "deadline"
  answer.cancel()
  assert answer.why_over() == "cancelled"


@pytest.mark.parametrize(
  "text", ['regex("[0-9]{2,3}")', 'boxes(["cat", "dog"])', "anything"]
)
def test_a_grammar_is_followed_as_in_the_compiled_loop(tokenizer, text):
  made = grammar.make(text, tokenizer)
  rng, left = np.random.default_rng(0), 20
  follower = answers.Follower(made)
  state = automaton.begin(made, (1,))
  logits = jnp.zeros((1, tokenizer.vocab_size))
  for step in range(left):
    allowed, floor = follower.allowed(left - step)
    ids = np.arange(tokenizer.vocab_size)
    ours = allowed[np.asarray(made.class_of_token)] & (ids > floor)
    theirs = automaton.restrict(made, state, logits, left - step)[0]
    np.testing.assert_array_equal(ours, np.isfinite(theirs))
    token = rng.choice(np.flatnonzero(ours))
    if token == tokenizer.eos_id:
      break
    follower.advance(int(token))
    state = automaton.advance(made, state, jnp.array([token], jnp.int32))
  assert step > 1
