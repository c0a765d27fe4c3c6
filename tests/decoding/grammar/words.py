"""A tokenizer of a few pieces, and what a grammar allows in its tokens."""

import itertools

import jax
import numpy as np

from paligemma.decoding.grammar import automaton

SPECIAL = [b"", b"", b"", b"", b"\n"]  # pad eos bos unk and the newline
BYTES = [bytes([b]) for b in range(256)]


class Words:
  """Pads, ends and begins as the real one; encodes by the longest piece."""

  eos_id = 1

  def __init__(self, pieces, *, with_bytes=False, locations=0, codes=0):
    texts = [piece.encode() for piece in pieces]
    self.loc_id = (len(SPECIAL) + len(texts)).__add__
    texts += [b"<loc%04d>" % i for i in range(locations)]
    self.seg_id = (len(SPECIAL) + len(texts)).__add__
    texts += [b"<seg%03d>" % i for i in range(codes)]
    self.pieces = SPECIAL + texts + (BYTES if with_bytes else [])
    self.vocab_size = len(self.pieces)
    # Of equal ones the first is taken, so bytes are a last resort.
    self._longest = sorted(
      range(len(SPECIAL) - 1, self.vocab_size),
      key=lambda i: (-len(self.pieces[i]), i),
    )

  def encode(self, text):
    left, ids = text.encode(), []
    while left:
      i = next(i for i in self._longest if left.startswith(self.pieces[i]))
      ids.append(i)
      left = left[len(self.pieces[i]) :]
    return ids

  def decode(self, ids):
    written = b"".join(
      b" \xe2\x81\x87 " if i == 3 else self.pieces[i] for i in ids
    )
    return written.decode(errors="replace")


def accepts(grammar, ids):
  """Whether an answer of these tokens, without eos, is allowed."""
  node = automaton.START
  for position, i in enumerate([*ids, int(grammar.eos_id)]):
    if grammar.rising[node] and i <= ids[position - 2]:
      return False
    node = grammar.target[node, grammar.class_of_token[i]]
    if node < 0:
      return False
  return node == automaton.END


def answers(grammar, ids, longest):
  """All token sequences of the grammar, of some tokens and up to a length."""
  return {
    sequence
    for length in range(longest + 1)
    for sequence in itertools.product(ids, repeat=length)
    if accepts(grammar, sequence)
  }


_ROWS = 256  # one shape, one compilation
_advance = jax.jit(automaton.advance)
_restrict = jax.jit(automaton.restrict)


def allowed(grammar, prefixes, left, vocabulary):
  """bool[N, V]: tokens that `restrict` leaves behind prefixes of one length."""
  rows = np.zeros((_ROWS, len(prefixes[0])), np.int32)
  rows[: len(prefixes)] = prefixes
  state = automaton.begin(grammar, (_ROWS,))
  for column in rows.T:
    state = _advance(grammar, state, column)
  logits = np.zeros((_ROWS, vocabulary), np.float32)
  found = _restrict(grammar, state, logits, left)
  return np.isfinite(found)[: len(prefixes)]
