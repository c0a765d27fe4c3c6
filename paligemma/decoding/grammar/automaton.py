"""The automaton over tokens: made on the host, followed in the decode loop.

Tokens that lead from every state to the same state make a class, so that the
table has states x classes, not states x vocabulary:

    allowed[b, v] = target[node[b], class_of_token[v]] is a state from which the
                    answer can still end in time
                    and v > before[b, 0], in a state that says so

B rows, V vocabulary, S states, C classes. State END is behind eos, START before
the first token.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from paligemma.decoding.grammar import language

END, START = 0, 1

_NEVER = np.iinfo(np.int32).max // 2
# Entries of the table; four bytes each.
_MOST_ENTRIES = 1 << 26


class Grammar(NamedTuple):
  """What answers are allowed; arrays, which decode.generate takes as they are.

  S and C are powers of two, so that programs are shared by many grammars.

  Attributes:
    class_of_token: i32[V], in [0, C). Class 0 are the tokens that are named
      nowhere.
    target: i32[S, C], the state after a token of the class; -1: not allowed.
    distance: i32[S], fewest tokens to the end, eos included; 0 at the end.
    rising: bool[S], the next token must be greater than the one two before.
    eos_id: i32[], the token that ends an answer.
  """

  class_of_token: Any
  target: Any
  distance: Any
  rising: Any
  eos_id: Any


class State(NamedTuple):
  """Where answers are.

  Attributes:
    node: i32[...], state of the automaton.
    before: i32[..., 2], the last two tokens, the earlier first.
  """

  node: jax.Array
  before: jax.Array


def lift(
  automaton: language.Automaton, pieces: Sequence[bytes], eos_id: int
) -> Grammar:
  """Lifts an automaton of symbols to tokens, by the bytes that each writes.

  A token is allowed where all its bytes are, one after the other, or where it
  is itself a symbol. So of a text every spelling is allowed, and a token may
  reach over what the expression has apart.

  Args:
    automaton: of the answers, eos not included.
    pieces: of each token, what it writes; those of no bytes are never allowed
      for their text.
    eos_id: token that ends an answer, in an accepting state.

  Raises:
    ValueError: no answer can be written with these tokens, or the table would
      be too large.
  """
  by_text, texts = _by_text(automaton, pieces)
  symbols = language.TOKEN + np.arange(len(pieces))
  by_symbol = automaton.class_of(symbols)
  # A pair of both, of which one alone leads anywhere, is a class.
  number = automaton.target.shape[1]
  pairs, class_of_token = np.unique(
    by_text * number + by_symbol % number, return_inverse=True
  )
  _check_size(len(automaton.accepting), len(pairs))
  as_text = texts[pairs // number].T
  as_symbol = automaton.target[:-1, pairs % number]
  assert not ((as_text >= 0) & (as_symbol >= 0)).any()
  # All states move up by one, for END. There eos is allowed, and leads to END.
  target = np.maximum(as_text, as_symbol)
  target = np.where(target >= 0, target + 1, -1)
  target = np.pad(target, ((1, 0), (0, 1)), constant_values=-1)
  accepting = np.pad(automaton.accepting, (1, 0), constant_values=True)
  rising = np.pad(automaton.rising, (1, 0))
  target[accepting, -1] = END
  class_of_token[eos_id] = target.shape[1] - 1
  distance = _distances(target)
  if distance[START] >= _NEVER:
    raise ValueError("grammar allows no answer that the tokenizer can write.")
  return _pad(*_reduced(class_of_token, target, distance, rising), eos_id)


def anything(vocab_size: int, eos_id: int) -> Grammar:
  """Allows every token at any time, and answers that are cut."""
  class_of_token = np.zeros(vocab_size, np.int64)
  class_of_token[eos_id] = 1
  target = np.array([[END, END], [START, END]])
  return _pad(class_of_token, target, np.zeros(2), np.zeros(2), eos_id)


def check(grammar: Grammar, max_decode_len: int, eos_id: int):
  """Refuses what no answer can come of, as far as arrays have values.

  Raises:
    ValueError: the shortest answer is longer than max_decode_len, or the end of
      an answer is another token.
  """
  if not isinstance(grammar, Grammar):
    raise ValueError(
      f"grammar is {grammar!r:.60}, expected what grammar.make returns for it"
      " and the tokenizer."
    )
  if any(isinstance(x, jax.core.Tracer) for x in (*grammar, eos_id)):
    return
  if int(grammar.eos_id) != eos_id:
    raise ValueError(
      f"eos_id={eos_id}, but answers of the grammar end with"
      f" {int(grammar.eos_id)}, that of its tokenizer."
    )
  if (shortest := int(grammar.distance[START])) > max_decode_len:
    raise ValueError(
      f"max_decode_len={max_decode_len}, but the shortest answer that the"
      f" grammar allows has {shortest} tokens, eos included."
    )


def begin(grammar: Grammar | None, shape: tuple[int, ...]) -> State | None:
  """The state before the first token; without a grammar there is none."""
  if grammar is None:
    return None
  return State(
    jnp.full(shape, START, jnp.int32), jnp.full((*shape, 2), -1, jnp.int32)
  )


def restrict(grammar: Grammar | None, state: State | None, logits, left):
  """Logits with -inf where a token is not allowed.

  A token is allowed if the grammar has it next and the answer can be completed
  with the tokens that are left then.

  Args:
    grammar, state: see `begin`; None restricts nothing.
    logits: f32[..., V].
    left: i32[], tokens that the answer may still have, this one and eos
      included.

  Raises:
    ValueError: logits are of fewer tokens than the tokenizer had.
  """
  if grammar is None:
    return logits
  vocabulary = logits.shape[-1]
  room = vocabulary - len(grammar.class_of_token)
  if room < 0:
    raise ValueError(
      f"grammar was made for {vocabulary - room} tokens, the model writes"
      f" {vocabulary}: give grammar.make the tokenizer of the model."
    )
  # A model may have rows that no token is for.
  class_of_token = jnp.pad(jnp.asarray(grammar.class_of_token), (0, room))
  target = jnp.asarray(grammar.target)[state.node]
  distance = jnp.asarray(grammar.distance)[target]
  allowed = (target >= 0) & (distance < left)
  allowed = jnp.take(allowed, class_of_token, axis=-1, mode="clip")
  rising = jnp.asarray(grammar.rising)[state.node]
  floor = jnp.where(rising, state.before[..., 0], -1)
  ids = jnp.arange(vocabulary, dtype=jnp.int32)
  ids = ids.reshape((1,) * (logits.ndim - 1) + (-1,))
  return jnp.where(allowed & (ids > floor[..., None]), logits, -jnp.inf)


def advance(grammar: Grammar | None, state: State | None, token):
  """The state after a token i32[...] of those allowed; END after another."""
  if grammar is None:
    return None
  kind = jnp.asarray(grammar.class_of_token)[token]
  node = jnp.asarray(grammar.target)[state.node, kind]
  before = jnp.stack([state.before[..., 1], token], axis=-1)
  return State(jnp.maximum(node, END), before)


def _by_text(automaton, pieces):
  """What the text of each token does to states: (i64[V], i32[N, S]).

  The first says which row of the second is that of a token. Row 0, of tokens
  that are allowed nowhere, is -1 throughout.

  All texts are read side by side, a byte at a time. Those that did the same up
  to there are looked at once, so the effort is that of reading the vocabulary
  and of the few effects that differ.
  """
  states = len(automaton.accepting)
  rows = [np.full(states, -1, np.int32), np.arange(states, dtype=np.int32)]
  number_of = {row.tobytes(): n for n, row in enumerate(rows)}
  class_of_byte = automaton.class_of(np.arange(256))
  classes = automaton.target.shape[1]

  def after(code):
    row = automaton.target[rows[code // classes], code % classes]
    number = number_of.setdefault(row.tobytes(), len(rows))
    if number == len(rows):
      rows.append(row)
      _check_size(states, number)
    return number

  lengths = np.array([len(piece) for piece in pieces])
  longest = max(lengths, default=0)
  texts = np.zeros((len(pieces), longest), np.uint8)
  texts[np.arange(longest) < lengths[:, None]] = np.frombuffer(
    b"".join(pieces), np.uint8
  )
  effect = np.where(lengths > 0, 1, 0)
  for place in range(longest):
    alive = np.flatnonzero((lengths > place) & (effect > 0))
    kind = class_of_byte[texts[alive, place]] % classes
    codes, inverse = np.unique(
      effect[alive] * classes + kind, return_inverse=True
    )
    found = np.array([after(code) for code in codes], np.int64)
    effect[alive] = found[inverse] if len(alive) else []
  return effect, np.stack(rows)


def _distances(target):
  """Fewest tokens from each state to END."""
  start, kind = np.nonzero(target >= 0)
  edges = np.unique(start * len(target) + target[start, kind])
  start, stop = np.divmod(edges, len(target))
  distance = np.full(len(target), _NEVER)
  distance[END] = 0
  while True:
    nearer = distance.copy()
    np.minimum.at(nearer, start, distance[stop] + 1)
    if (nearer == distance).all():
      return distance
    distance = nearer


def _reduced(class_of_token, target, distance, rising):
  """Leaves out states off every path to END, and classes alike without them."""
  reached, ends = np.zeros(len(target), bool), distance < _NEVER
  new = np.array([END, START])
  while len(new):
    reached[new] = True
    new = np.unique(target[new])
    new = new[new >= 0]
    new = new[ends[new] & ~reached[new]]
  number = np.where(reached, np.cumsum(reached) - 1, -1)
  # Index -1, of what is not allowed, is for the entry added behind.
  target = np.append(number, -1)[target[reached]]
  # The class of what is allowed nowhere is added in front, to be class 0.
  target = np.pad(target, ((0, 0), (1, 0)), constant_values=-1)
  columns = {}
  merged = [columns.setdefault(c.tobytes(), len(columns)) for c in target.T]
  class_of_token = np.array(merged)[class_of_token + 1]
  _, first = np.unique(merged, return_index=True)
  target = target[:, first]
  return class_of_token, target, distance[reached], rising[reached]


def _pad(class_of_token, target, distance, rising, eos_id) -> Grammar:
  """To powers of two, with states that are never reached."""
  _check_size(*target.shape)
  states, classes = (1 << max(4, (n - 1).bit_length()) for n in target.shape)
  more = (0, states - len(target))
  return Grammar(
    class_of_token.astype(np.int32),
    np.pad(
      target, (more, (0, classes - target.shape[1])), constant_values=-1
    ).astype(np.int32),
    np.pad(distance, more).astype(np.int32),
    np.pad(rising, more).astype(bool),
    np.int32(eos_id),
  )


def _check_size(states, classes):
  if states * classes > _MOST_ENTRIES:
    raise ValueError(
      f"grammar has {states} states x {classes} classes of tokens, expected at"
      f" most {_MOST_ENTRIES} in all; give fewer or shorter choices."
    )
