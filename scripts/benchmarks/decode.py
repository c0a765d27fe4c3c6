"""Greedy decoding, from images and prompts to the last token."""

import functools
import types
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from paligemma import tree
from paligemma.decoding import decode
from paligemma.models.paligemma import Model
from paligemma.planning import flops
from scripts.benchmarks import contest, subject

NEW_TOKENS = 32
_GROWTH = (16, 32, 64, 128, 256, 512)
_NEVER = -1  # an id that no token has: every row goes on to the end


def measure(
  config: ConfigDict, *, peer: types.ModuleType | None, runs: int, growth: bool
) -> dict[str, Any]:
  """What `scripts.benchmark decode` prints; `peer` is a module or None."""
  if jax.default_backend() == "cpu":
    # There, XLA would convert a stack of bfloat16 weights to float32. Layers
    # of the decoder are apart anyhow.
    config.model.img.scan = False
  plan = subject.make_plan(config)
  model, flat = plan.served_model, subject.served_parameters(plan)
  params = tree.unflatten(flat)
  prompts = subject.prompts(subject.batch(config, model.llm.vocab_size))
  ours = functools.partial(_generate, model, params, prompts)
  contestants = {"ours": functools.partial(ours, NEW_TOKENS)}
  peers = {}
  if peer is not None:
    peers = peer.decoders(model, flat, prompts, NEW_TOKENS)
    contestants |= peers
  result = contest.compete(
    "decode",
    "tokens_per_s",
    contestants,
    runs=runs,
    amount=config.batch_size * NEW_TOKENS,
    phases=work(model, flat, config),
    dtype=config.model.dtype,
    version=peer and peer.VERSION,
  )
  if peers:
    text = np.asarray(ours(NEW_TOKENS).tokens)
    result["peer"]["equal_tokens"] = {
      name: float((text == generate()).mean())
      for name, generate in peers.items()
    }
  if growth:
    result["growth"] = {"new_tokens": _growth(ours)}
  return result


def work(
  model: Model, params: Mapping[str, Any], config: ConfigDict
) -> list[tuple[float, float]]:
  """(FLOPs, bytes) of the prefill, and of all further tokens.

  Parameters are flat, as they are stored; see scripts/benchmark.py.
  """
  count = functools.partial(
    flops.decode,
    model,
    params,
    batch_size=config.batch_size,
    res=config.res,
    text_len=subject.PREFIX,
  )
  prefill, whole = (count(max_decode_len=n) for n in (1, NEW_TOKENS))
  llm_bytes = sum(x.nbytes for n, x in params.items() if n.startswith("llm/"))
  all_bytes = sum(x.nbytes for x in params.values())
  steps = NEW_TOKENS - 1
  return [(prefill, all_bytes), (whole - prefill, steps * llm_bytes)]


def _generate(model, params, prompts, new_tokens):
  decoded = decode.generate(
    model, params, prompts, max_decode_len=new_tokens, eos_id=_NEVER
  )
  return jax.block_until_ready(decoded)


def _growth(generate):
  """Seconds per token after the first, by the number of tokens."""
  contestants = {n: functools.partial(generate, n) for n in (1, *_GROWTH)}
  taken = contest.seconds(contestants, 3)
  first = min(taken.pop(1))
  return [
    {"new_tokens": n, "seconds_per_token": (min(each) - first) / (n - 1)}
    for n, each in taken.items()
  ]
