"""Answers of many requests at once are those of `generate`, one by one."""

import contextlib
import threading

import jax
import numpy as np
import pytest

import paligemma
from paligemma import tree
from paligemma.lora import apply as lora
from paligemma.models import paligemma as paligemma_model
from paligemma.serving import engine, request

RES, LENGTH = 28, 11
WAIT = 120  # seconds; ends a hang
PROMPTS = ["what", "detect red circle", "is this", "caption en " * 3]
ADAPTERS = {
  "queries": dict(rank=3, alpha=2.0, targets=["llm/attn/q", "llm/attn/v"]),
  "decoder": dict(rank=5, alpha=9.0, rslora=True),
  "both": dict(rank=2, alpha=3.0, targets=["img/.*", "llm/mlp/down"]),
}


@pytest.fixture(scope="module")
def tiny(tokenizer):
  """A model with random weights, which ends an answer every few tokens."""
  model = paligemma_model.make(
    "paligemma_tiny", vocab_size=tokenizer.vocab_size
  )
  image = np.zeros((1, RES, RES, 3), np.float32)
  text = np.zeros((1, 1), np.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image, text, text)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32),
    shapes["params"],
  )
  params["llm"]["embedder"]["input_embedding"] *= 0.2
  params["llm"]["embedder"]["input_embedding"][1] *= 4  # eos
  return model, jax.device_put(params)


@pytest.fixture(scope="module")
def adapted(tiny):
  """Adapters of different ranks and targets."""
  found, rng = {}, np.random.default_rng(1)
  for name, fields in ADAPTERS.items():
    model, params = lora.enable_lora(*tiny, **fields)
    flat = tree.flatten(params)
    for key, adapts in lora.is_adapter(flat).items():
      if adapts:
        drawn = rng.normal(0, 0.3, flat[key].shape)
        flat[key] = jax.numpy.asarray(drawn, "float32")
    found[name] = model, tree.unflatten(flat)
  return found


@pytest.fixture(scope="module")
def pictures():
  rng = np.random.default_rng(2)
  return [rng.integers(0, 256, (19 + i, 23, 3), np.uint8) for i in range(5)]


@pytest.fixture
def started(tiny, tokenizer):
  """Starts an engine that ends with the test."""
  with contextlib.ExitStack() as stack:

    def start(**options):
      options = dict(places=3, max_prompt=40, max_tokens=LENGTH) | options
      found = engine.Engine(*tiny, tokenizer, **options)
      stack.callback(found.close, 0)
      return found

    yield start


class Client:
  """What a request was told."""

  def __init__(self, asked, one, **callbacks):
    self.tokens, self.ends, self.done = [], [], threading.Event()
    self.on_token = self.tokens.append
    vars(self).update(callbacks)
    self.cancel = asked.submit(one, lambda x: self.on_token(x), self._on_end)

  def _on_end(self, end):
    self.ends.append(end)
    self.done.set()

  def end(self):
    assert self.done.wait(WAIT), "the request did not end"
    (end,) = self.ends
    return end

  def text(self):
    return self.end().text


def ask(prompt, *images, **options):
  options = dict(max_tokens=LENGTH, deadline=WAIT) | options
  return request.Request(prompt, images, **options)


def test_answers_are_those_of_generate(tiny, tokenizer, started, pictures):
  asked = started()
  clients = [
    Client(asked, ask(prompt, picture))
    for picture in pictures
    for prompt in PROMPTS
  ]
  found = [x.text() for x in clients]
  expected = paligemma.generate(
    *tiny,
    tokenizer,
    [x for x in pictures for _ in PROMPTS],
    PROMPTS * len(pictures),
    max_decode_len=LENGTH,
  )
  assert found == expected
  assert len(set(found)) > 10
  for client, text in zip(clients, found, strict=True):
    end = client.end()
    assert "".join(x.text for x in client.tokens) == text
    assert end.tokens == len(client.tokens) <= LENGTH
    is_eos = client.tokens[-1].id == tokenizer.eos_id
    assert end.reason == ("stop" if is_eos else "length")
  assert {x.end().reason for x in clients} == {"stop", "length"}
