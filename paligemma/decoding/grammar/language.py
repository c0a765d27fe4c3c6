"""Expressions over symbols, and the automaton that accepts their sequences.

A symbol is a number: one of the 256 bytes, or TOKEN + id for a token as such,
whatever its text. An expression of Symbols, Sequence, Either and Repeat
describes the allowed sequences; `automaton` compiles it by the constructions of
Thompson (expression -> nondeterministic automaton), of subsets (->
deterministic) and of Hopcroft (-> smallest).

Source: Hopcroft, Motwani and Ullman, "Introduction to Automata Theory,
Languages, and Computation", chapters 2 to 4; Hopcroft, "An n log n algorithm
for minimizing states in a finite automaton", 1971.
"""

import bisect
import functools
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

TOKEN = 256  # the symbol of token 0

MOST_STATES = 1 << 15  # more would need tables that are too large
_MOST_NODES = 1 << 16
_MOST_VISITS = 1 << 19  # of edges, by the construction of subsets: seconds


class Symbols(NamedTuple):
  """One symbol out of ranges.

  Attributes:
    ranges: (first, last) of each, both included.
    rising: whether the symbol, a token, must have a greater id than the token
      two before: y1 against y0 and x1 against x0 in a box.
  """

  ranges: tuple[tuple[int, int], ...]
  rising: bool = False


class Sequence(NamedTuple):
  """One expression after the other."""

  parts: tuple["Expression", ...]


class Either(NamedTuple):
  """One of several expressions."""

  parts: tuple["Expression", ...]


class Repeat(NamedTuple):
  """An expression `least` to `most` times; most=None is without limit."""

  part: "Expression"
  least: int
  most: int | None


Expression = Symbols | Sequence | Either | Repeat


class Automaton(NamedTuple):
  """States 0..S-1, of which 0 is the start, and K classes of symbols.

  Attributes:
    target: the state after a symbol of a class, -1 if it is not allowed. The
      last row and column are -1, so index -1 is no state or class.
    accepting: whether an answer may end here.
    rising: see Symbols.
    bounds: class k holds the symbols in [bounds[k], bounds[k + 1]).
  """

  target: Int[np.ndarray, "S+1 K+1"]
  accepting: Bool[np.ndarray, " S"]
  rising: Bool[np.ndarray, " S"]
  bounds: Int[np.ndarray, " K+1"]

  def class_of(self, symbols: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """Returns the class of each symbol; -1 or K for those that never occur."""
    return np.searchsorted(self.bounds, symbols, side="right") - 1


def text(string: str) -> Expression:
  """Returns the expression for the bytes of a text."""
  return Sequence(tuple(Symbols(((b, b),)) for b in string.encode()))


def tokens(ids: Iterable[int]) -> Expression:
  """Returns the expression for these tokens in succession."""
  return Sequence(tuple(Symbols(((TOKEN + i, TOKEN + i),)) for i in ids))


def characters(ranges: Iterable[tuple[int, int]]) -> Expression:
  """Returns the expression for the UTF-8 bytes of one character.

  Ranges of code points include both ends. Surrogates are left out.
  """
  parts = []
  for first, last in ranges:
    for low, high in ((first, min(last, 0xD7FF)), (max(first, 0xE000), last)):
      for pair in _same_length(low, high):
        encoded = zip(*(chr(point).encode() for point in pair), strict=True)
        parts.append(Sequence(tuple(Symbols((both,)) for both in encoded)))
  return Either(tuple(parts))


def _same_length(low, high):
  """Splits code points into ranges whose bytes vary independently."""
  if low > high:
    return
  # Where the encoding becomes longer.
  splits = [start for start in (0x80, 0x800, 0x10000) if low < start <= high]
  # In a block of 64 ** n code points, only the last n bytes differ.
  for n in range(1, len(chr(low).encode())):
    block = 64**n
    if low // block == high // block:
      break
    if low % block:
      splits.append(low - low % block + block)
    elif (high + 1) % block:
      splits.append(high - high % block)
  if splits:
    yield from _same_length(low, splits[0] - 1)
    yield from _same_length(splits[0], high)
  else:
    yield low, high


def automaton(expression: Expression) -> Automaton:
  """Returns the smallest automaton of an expression.

  Raises:
    ValueError: it would have more than MOST_STATES, or take long to find out.
  """
  nodes = _Nodes([], [], set())
  start = nodes.add()
  try:
    end = nodes.build(expression, start)
  except RecursionError:
    raise ValueError("grammar is nested too deep.") from None
  bounds = {
    bound
    for edges in nodes.edges
    for first, last, _ in edges
    for bound in (first, last + 1)
  }
  bounds = sorted(bounds or {0})
  rows, members = _subsets(nodes, start, bounds)
  kinds = [(end in m, not nodes.rising.isdisjoint(m)) for m in members]
  merged = _merge(rows, kinds)
  number = max(merged) + 1
  target = np.full((number + 1, len(bounds)), -1, np.int32)
  flags = np.zeros((2, number), bool)
  for state, row in zip(merged, rows, strict=True):
    for k, after in row.items():
      target[state, k] = merged[after]
  for state, kind in zip(merged, kinds, strict=True):
    flags[:, state] = kind
  return Automaton(target, *flags, np.array(bounds, np.int64))


class _Nodes(NamedTuple):
  """A nondeterministic automaton under construction.

  Attributes:
    edges: of each node, (first symbol, last symbol, next node).
    jumps: of each node, the nodes that are reached without a symbol.
    rising: nodes whose edges are of rising Symbols.
  """

  edges: list[list[tuple[int, int, int]]]
  jumps: list[list[int]]
  rising: set[int]

  def add(self) -> int:
    if len(self.edges) > _MOST_NODES:
      raise _too_large()
    self.edges.append([])
    self.jumps.append([])
    return len(self.edges) - 1

  def build(self, expression: Expression, start: int) -> int:
    """Adds an expression after a node; returns the node after it."""
    match expression:
      case Symbols(ranges, rising):
        end = self.add()
        self.edges[start] += [(*both, end) for both in ranges]
        if rising:
          self.rising.add(start)
        return end
      case Sequence(parts):
        for part in parts:
          start = self.build(part, start)
        return start
      case Either(parts):
        end = self.add()
        for part in parts:
          self.jumps[self.build(part, start)].append(end)
        return end
      case Repeat(part, least, most):
        for _ in range(least):
          before, start = start, self.build(part, start)
          if start == before:  # the part is empty, however often
            return start
        end = self.add()
        self.jumps[start].append(end)
        if most is None:
          self.jumps[self.build(part, end)].append(end)
        for _ in range(0 if most is None else most - least):
          before, start = start, self.build(part, start)
          if start == before:
            break
          self.jumps[start].append(end)
        return end


def _too_large():
  return ValueError(
    f"grammar has more than {MOST_STATES} states; count to smaller numbers, or"
    " give fewer or shorter choices."
  )


def _subsets(nodes, start, bounds):
  """Returns {class: next state} and the nodes of each reachable state."""

  visits = 0

  def visit(count):
    nonlocal visits
    visits += count
    if visits > _MOST_VISITS:
      raise _too_large()

  @functools.cache
  def closure(subset):
    found, left = set(subset), list(subset)
    while left:
      jumps = nodes.jumps[left.pop()]
      visit(1 + len(jumps))
      for node in jumps:
        if node not in found:
          found.add(node)
          left.append(node)
    return frozenset(found)

  members = [closure(frozenset([start]))]
  states = {members[0]: 0}
  rows = []
  while len(rows) < len(members):
    moves = defaultdict(set)
    for node in members[len(rows)]:
      visit(len(nodes.edges[node]))
      for first, last, after in nodes.edges[node]:
        low = bisect.bisect_left(bounds, first)
        for k in range(low, bisect.bisect_left(bounds, last + 1)):
          moves[k].add(after)
    row = {}
    for k, targets in moves.items():
      subset = closure(frozenset(targets))
      if subset not in states:
        if len(members) == MOST_STATES:
          raise _too_large()
        states[subset] = len(members)
        members.append(subset)
      row[k] = states[subset]
    rows.append(row)
  return rows, members


def _merge(rows, kinds) -> list[int]:
  """Numbers the states; equivalent ones get the same number.

  Blocks of states that may be equivalent are split by the edges into a block
  until no edge tells them apart; of two new blocks the smaller one suffices.
  """
  edges = [[] for _ in rows]  # into each state
  for state, row in enumerate(rows):
    for k, after in row.items():
      edges[after].append((k, state))
  block_of = _numbered(kinds)
  blocks = [set() for _ in range(max(block_of) + 1)]
  for state, block in enumerate(block_of):
    blocks[block].add(state)
  work = set(range(len(blocks)))
  while work:
    sources = defaultdict(list)
    for state in blocks[work.pop()]:
      for k, source in edges[state]:
        sources[k].append(source)
    for found in sources.values():
      hit = defaultdict(set)
      for state in found:
        hit[block_of[state]].add(state)
      for block, part in hit.items():
        if len(part) == len(blocks[block]):
          continue
        blocks[block] -= part
        new = len(blocks)
        blocks.append(part)
        for state in part:
          block_of[state] = new
        is_smaller = len(part) <= len(blocks[block])
        work.add(new if block in work or is_smaller else block)
  return _numbered(block_of)


def _numbered(keys) -> list[int]:
  """Numbers keys by first occurrence: 0, 1, 2..."""
  seen = {}
  return [seen.setdefault(key, len(seen)) for key in keys]
