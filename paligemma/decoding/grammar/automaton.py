"""The automaton over tokens: made on the host, followed in the decode loop.

Tokens that lead from every state to the same state form a class, so the table
has states x classes entries instead of states x vocabulary:

    allowed[b, v] = target[node[b], class_of_token[v]] is a state from which the
                    answer can still end in time
                    and v > before[b, 0], in a rising state

Axes: B answers, V vocabulary, S states, C classes. An answer begins in state
START and is in state END after eos.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from paligemma.decoding.grammar import language

END, START = 0, 1

_NEVER = np.iinfo(np.int32).max // 2
MOST_ENTRIES = 1 << 26  # of the table; four bytes each


class Grammar(NamedTuple):
  """The allowed answers, as arrays for decode.generate.

  S and C are powers of two, so that many grammars share one program.

  Attributes:
    class_of_token: in [0, C). Class 0 holds the tokens that are never allowed.
    target: the state after a token of the class; -1: not allowed.
    distance: fewest tokens to the end, eos included; 0 at the end.
    rising: whether the next token must be greater than the one two before.
    eos_id: the token that ends an answer.
  """

  class_of_token: Int[np.ndarray, " V"]
  target: Int[np.ndarray, "S C"]
  distance: Int[np.ndarray, " S"]
  rising: Bool[np.ndarray, " S"]
  eos_id: Int[np.ndarray, ""]


class State(NamedTuple):
  """States of answers: of the automaton, and the last two tokens."""

  node: Int[Array, "..."]
  before: Int[Array, "... 2"]  # the earlier one first


def lift(
  automaton: language.Automaton, pieces: Sequence[bytes], eos_id: int
) -> Grammar:
  """Turns an automaton over bytes and tokens into one over tokens.

  A token is allowed where its bytes are allowed in succession, or where it is
  itself a symbol. So every tokenization of a text is allowed, and a token may
  span several parts of an expression. In accepting states eos is allowed.

  Args:
    automaton: of the answers, without eos.
    pieces: bytes that each token writes; a token without bytes is allowed only
      as a symbol.

  Raises:
    ValueError: no answer can be written with these tokens, or the table would
      be too large.
  """
  by_text, texts = _by_text(automaton, pieces)
  symbols = language.TOKEN + np.arange(len(pieces))
  by_symbol = automaton.class_of(symbols)
  # A class is a pair of both, of which at most one leads to a state.
  number = automaton.target.shape[1]
  pairs, class_of_token = np.unique(
    by_text * number + by_symbol % number, return_inverse=True
  )
  _check_size(len(automaton.accepting), len(pairs))
  as_text = texts[pairs // number].T
  as_symbol = automaton.target[:-1, pairs % number]
  assert not ((as_text >= 0) & (as_symbol >= 0)).any()
  # All states move up by one, for END. In accepting states eos leads to END.
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


def check(
  grammar: Grammar, max_decode_len: int, eos_id: Int[ArrayLike, ""]
) -> None:
  """Checks that decoding can produce an answer; traced arrays are not checked.

  Raises:
    ValueError: the shortest answer is longer than max_decode_len, or answers
      end with a token other than eos_id.
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
  """Returns the state before the first token, None without a grammar."""
  if grammar is None:
    return None
  before = jnp.full((*shape, 2), -1, jnp.int32)
  return State(jnp.full(shape, START, jnp.int32), before)


def restrict(
  grammar: Grammar | None,
  state: State | None,
  logits: Float[Array, "... V"],
  left: Int[ArrayLike, ""] | Int[ArrayLike, "..."],
) -> Float[Array, "... V"]:
  """Returns logits with -inf where a token is not allowed.

  A token is allowed if the grammar has it next and the answer can be completed
  with the tokens that are left then. Without a grammar every token is.

  Args:
    logits: of the next token.
    left: number of tokens left, this one and eos included; of all answers, or
      of each.

  Raises:
    ValueError: there are fewer logits than tokens of the grammar's tokenizer.
  """
  if grammar is None:
    return logits
  vocabulary, known = logits.shape[-1], len(grammar.class_of_token)
  if vocabulary < known:
    raise ValueError(
      f"grammar was made for {known} tokens, the model writes {vocabulary}:"
      " give grammar.make the tokenizer of the model."
    )
  # A model may have more logits than the tokenizer has tokens.
  more = (0, vocabulary - known)
  class_of_token = jnp.pad(jnp.asarray(grammar.class_of_token), more)
  target = jnp.asarray(grammar.target)[state.node]
  distance = jnp.asarray(grammar.distance)[target]
  left = jnp.broadcast_to(left, distance.shape[:-1])
  allowed = (target >= 0) & (distance < left[..., None])
  allowed = jnp.take(allowed, class_of_token, axis=-1, mode="clip")
  rising = jnp.asarray(grammar.rising)[state.node]
  floor = jnp.where(rising, state.before[..., 0], -1)
  ids = jnp.arange(vocabulary, dtype=jnp.int32)
  ids = jnp.expand_dims(ids, range(logits.ndim - 1))
  return jnp.where(allowed & (ids > floor[..., None]), logits, -jnp.inf)


def advance(
  grammar: Grammar | None, state: State | None, token: Int[Array, "..."]
) -> State | None:
  """Returns the state after a token; END if it was not allowed."""
  if grammar is None:
    return None
  kind = jnp.asarray(grammar.class_of_token)[token]
  node = jnp.asarray(grammar.target)[state.node, kind]
  before = jnp.stack([state.before[..., 1], token], axis=-1)
  return State(jnp.maximum(node, END), before)


def _by_text(automaton, pieces):
  """Returns the effects of the tokens' texts on states: (i64[V], i32[N, S]).

  The first array holds the index of each token's effect in the second. Effect
  0, of tokens that are never allowed, is -1 throughout. All texts are read in
  parallel, byte by byte, and each distinct effect is computed once.
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

  lengths = np.array(list(map(len, pieces)))
  longest = max(lengths, default=0)
  texts = np.zeros((len(pieces), longest), np.uint8)
  written = np.arange(longest) < lengths[:, None]
  texts[written] = np.frombuffer(b"".join(pieces), np.uint8)
  effect = np.where(lengths > 0, 1, 0)
  for i in range(longest):
    alive = np.flatnonzero((lengths > i) & (effect > 0))
    byte_class = class_of_byte[texts[alive, i]] % classes
    codes = effect[alive] * classes + byte_class
    codes, inverse = np.unique(codes, return_inverse=True)
    found = np.array([after(code) for code in codes], np.int64)
    effect[alive] = found[inverse]
  return effect, np.stack(rows)


def _distances(target):
  """Returns the fewest tokens from each state to END."""
  start, kind = np.nonzero(target >= 0)
  edges = np.unique(start * len(target) + target[start, kind])
  start, stop = np.divmod(edges, len(target))
  start = start[np.argsort(stop)]
  first = np.searchsorted(np.sort(stop), np.arange(len(target) + 1))
  distance = np.full(len(target), _NEVER)
  new, steps = np.array([END]), 0
  while len(new):
    distance[new] = steps
    steps += 1
    before = [start[first[state] : first[state + 1]] for state in new]
    before = np.concatenate(before)
    new = np.unique(before[distance[before] == _NEVER])
  return distance


def _reduced(class_of_token, target, distance, rising):
  """Drops states that are on no path to END, then merges equal classes."""
  reached, ends = np.zeros(len(target), bool), distance < _NEVER
  new = np.array([END, START])
  while len(new):
    reached[new] = True
    new = np.unique(target[new])
    new = new[new >= 0]
    new = new[ends[new] & ~reached[new]]
  number = np.where(reached, np.cumsum(reached) - 1, -1)
  # The appended -1 is what target -1, not allowed, maps to.
  target = np.append(number, -1)[target[reached]]
  # The class of tokens that are never allowed becomes class 0.
  target = np.pad(target, ((0, 0), (1, 0)), constant_values=-1)
  columns = {}
  merged = [columns.setdefault(c.tobytes(), len(columns)) for c in target.T]
  class_of_token = np.array(merged)[class_of_token + 1]
  _, first = np.unique(merged, return_index=True)
  target = target[:, first]
  return class_of_token, target, distance[reached], rising[reached]


def _pad(class_of_token, target, distance, rising, eos_id) -> Grammar:
  """Pads states and classes to powers of two, with states never reached."""
  _check_size(*target.shape)
  states, classes = (1 << max(4, (n - 1).bit_length()) for n in target.shape)
  padded = np.full((states, classes), -1, np.int32)
  padded[: len(target), : target.shape[1]] = target
  more = (0, states - len(target))
  return Grammar(
    class_of_token.astype(np.int32),
    padded,
    np.pad(distance, more).astype(np.int32),
    np.pad(rising, more).astype(bool),
    np.int32(eos_id),
  )


def _check_size(states, classes):
  if states * classes > MOST_ENTRIES:
    raise ValueError(
      f"grammar has {states} states x {classes} classes of tokens, expected at"
      f" most {MOST_ENTRIES} in all; give fewer or shorter choices."
    )
