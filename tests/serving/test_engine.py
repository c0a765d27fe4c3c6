"""Answers of many requests at once are those of `generate`, one by one."""

import contextlib
import functools
import itertools
import random
import threading
import time
import types

import jax
import numpy as np
import pytest

import paligemma
from paligemma import quantization, tree
from paligemma.decoding import grammar
from paligemma.decoding.grammar import automaton
from paligemma.lora import apply as lora
from paligemma.models import paligemma as paligemma_model
from paligemma.serving import answers, engine, places, request, sizes
from tests import typecheck

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
    "paligemma_tiny",
    vocab_size=tokenizer.vocab_size,
    img=dict(depth=1),
    llm=dict(depth=2),
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


def test_requests_of_all_kinds_share_a_batch(
  tiny, adapted, tokenizer, started, pictures
):
  """32 at once in random order, adapters mixed, cancelled ones among them."""
  asked = started(adapters=adapted, max_waiting=32)
  only = grammar.make('regex("[0-9]{2,9}")', tokenizer)
  rng = random.Random(0)
  names = [None, *adapted]
  wanted = [
    (name, prompt, picture)
    for name in names
    for prompt in PROMPTS[:3]
    for picture in pictures[:2]
  ]
  clients = {}
  for one in rng.sample(wanted, len(wanted)):
    name, prompt, picture = one
    clients[one[0], prompt, picture.tobytes()] = Client(
      asked, ask(prompt, picture, adapter=name)
    )
  others = [
    Client(asked, ask(prompt, pictures[0], adapter=name, **options))
    for name, prompt, options in zip(
      names,
      PROMPTS,
      [dict(grammar=only), dict(temperature=1.0)] * 2,
      strict=True,
    )
  ]
  cancelled = [Client(asked, ask("what", x)) for x in pictures[:4]]
  for client in cancelled:
    client.cancel()
  for name in names:
    model, params = adapted[name] if name else tiny
    of_name = [x for x in wanted if x[0] == name]
    expected = paligemma.generate(
      model,
      params,
      tokenizer,
      [picture for _, _, picture in of_name],
      [prompt for _, prompt, _ in of_name],
      max_decode_len=LENGTH,
    )
    for (_, prompt, picture), text in zip(of_name, expected, strict=True):
      assert clients[name, prompt, picture.tobytes()].text() == text, name
  assert all(x.end().reason in ("stop", "length") for x in others)
  assert all(x.text().isdigit() for x in others[::2])
  assert all(x.end().reason == "cancelled" for x in cancelled)
  assert asked.counts() == {
    "waiting": 0,
    "active": 0,
    "places": 3,
    "tokens": asked.counts()["tokens"],
    "requests": 32,
    "image_hits": asked.counts()["image_hits"],
    "image_misses": asked.counts()["image_misses"],
  }


def test_a_draw_depends_on_its_seed_alone(started, pictures):
  asked = started()
  one = ask("what", pictures[0], temperature=1.5, top_p=0.9, seed=2**40 + 3)
  alone = Client(asked, one)
  alone.end()
  beside = [Client(asked, ask("is this", x)) for x in pictures]
  again = Client(asked, one)
  cut = Client(asked, ask("what", pictures[1], temperature=2.0, top_p=0.5))
  others = [
    Client(asked, ask("what", pictures[0], temperature=1.5, top_p=0.9, seed=i))
    for i in range(3)
  ]
  assert again.end() == alone.end()
  for ours, theirs in zip(again.tokens, alone.tokens, strict=True):
    assert ours.id == theirs.id
  assert len({x.text() for x in others}) > 1
  for client in [*beside, cut]:
    client.end()


def test_log_probabilities_are_those_of_the_model(started, pictures):
  asked = started()
  greedy = Client(asked, ask("what", pictures[0], top_log_probs=5))
  drawn = Client(asked, ask("what", pictures[0], temperature=1.5, seed=4))
  for token in (greedy.end(), greedy.tokens)[1]:
    assert token.top[0] == (token.id, pytest.approx(token.log_prob, abs=1e-5))
    values = [log_prob for _, log_prob in token.top]
    assert values == sorted(values, reverse=True)
    assert len(token.top) == 5
    assert sum(np.exp(values)) < 1
  drawn.end()
  assert all(x.top == () and x.log_prob < 0 for x in drawn.tokens)


def test_answers_under_way_wait_for_few_prompts(started, pictures, monkeypatch):
  calls = []
  for name in ("prefill", "extend"):

    def call(self, *args, run=getattr(places.Places, name), name=name):
      calls.append(len(args[0]) if name == "prefill" else name)
      return run(self, *args)

    monkeypatch.setattr(places.Places, name, call)
  asked = started(places=7)
  while not asked.ready:
    time.sleep(0.01)
  calls.clear()
  compiled = [x.num_compiled() for x in (places._prefill, places._extend)]
  clients = [Client(asked, ask("what", pictures[i % 5])) for i in range(17)]
  for client in clients:
    client.end()
  assert compiled == [
    x.num_compiled() for x in (places._prefill, places._extend)
  ]
  prefills = [x for x in calls if x != "extend"]
  assert sum(prefills) == 17
  assert max(prefills) <= sizes.TOGETHER
  for one, other in itertools.pairwise(calls):
    assert "extend" in (one, other)


def test_a_picture_is_embedded_once(started, pictures, monkeypatch):
  asked = started()
  for prompt in PROMPTS:
    Client(asked, ask(prompt, pictures[0], pictures[1])).end()
  counts = asked.counts()
  assert (counts["image_misses"], counts["image_hits"]) == (2, 6)
  means = asked.embed_images(pictures[:2])
  assert means.shape == (2, 128)
  assert means.dtype == np.float32
  assert asked.counts()["image_hits"] == 8
  assert not np.allclose(*means)


@pytest.fixture
def long(tokenizer, pictures):
  """Asks what is answered with several tokens."""
  digits = grammar.make('regex("[0-9]{9}")', tokenizer)
  return functools.partial(ask, "what", pictures[0], grammar=digits)


@contextlib.contextmanager
def held(asked, one):
  """Keeps the engine within the first token of a request."""
  begun, goes_on = threading.Event(), threading.Event()

  def hold(token):
    client.tokens.append(token)
    begun.set()
    assert goes_on.wait(WAIT)

  client = Client(asked, one, on_token=hold)
  assert begun.wait(WAIT)
  try:
    yield client
  finally:
    goes_on.set()


def test_a_queue_has_an_end(started, pictures, long):
  asked = started(max_waiting=2)
  assert not asked.counts()["waiting"]
  with held(asked, long()):
    waiting = [Client(asked, ask("what", pictures[0])) for _ in range(2)]
    with pytest.raises(request.Full, match=r"^2 requests wait already$"):
      Client(asked, ask("what", pictures[0]))
    assert asked.counts()["waiting"] == 2
  assert {x.end().reason for x in waiting} <= {"stop", "length"}


def test_a_deadline_ends_what_waits_and_what_is_active(
  started, tokenizer, pictures, long, monkeypatch
):
  late = [0.0]
  clock = types.SimpleNamespace(monotonic=lambda: time.monotonic() + late[0])
  monkeypatch.setattr(answers, "time", clock)
  asked = started()
  with held(asked, long(deadline=1000)) as active:
    waiting = Client(asked, ask("what", pictures[0], deadline=1000))
    late[0] = 1001.0
    fresh = Client(asked, ask("what", pictures[0], deadline=1000))
  text = tokenizer.encode("what", bos=True) + tokenizer.encode("\n")
  assert waiting.end() == request.End("deadline", "", 4 + len(text), 0)
  assert active.end().reason == "deadline"
  assert active.end().tokens == len(active.tokens) == 1
  assert fresh.end().reason in ("stop", "length")


def test_a_cancelled_request_frees_its_place(started, pictures, long):
  asked = started(places=1)
  with held(asked, long()) as active:
    active.cancel()
    waiting = Client(asked, ask("what", pictures[0]))
  assert active.end().reason == "cancelled"
  assert waiting.end().reason in ("stop", "length")


def test_closing_ends_what_is_active(started, pictures, long):
  asked = started()
  with held(asked, long()) as active:
    waiting = Client(asked, ask("what", pictures[0]))
    closing = threading.Thread(target=asked.close, args=(WAIT,))
    closing.start()
    while asked.ready:
      time.sleep(0.01)
    with pytest.raises(request.Closed, match=r"^the engine is closed$"):
      Client(asked, ask("what", pictures[0]))
  closing.join()
  assert active.end().reason in ("stop", "length")
  assert waiting.end().reason == "cancelled"


def test_closing_at_once_ends_all(started, pictures, long):
  asked = started()
  with held(asked, long()) as active:
    closing = threading.Thread(target=asked.close, args=(0,))
    closing.start()
    while asked.ready:
      time.sleep(0.01)
  closing.join()
  assert active.end().reason == "cancelled"


def test_a_fault_of_one_request_leaves_the_others(started, pictures, caplog):
  asked = started()

  def fail(token):
    raise RuntimeError("nobody listens")

  broken = Client(asked, ask("what", pictures[0]), on_token=fail)
  other = Client(asked, ask("what", pictures[1]))
  assert broken.end().reason == "error"
  assert broken.end().message == "nobody listens"
  assert other.end().reason in ("stop", "length")
  assert asked.ready


def test_a_fault_of_the_device_ends_all(
  started, pictures, long, monkeypatch, caplog
):
  asked = started()
  with held(asked, long()) as active:

    def fail(*_):
      raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(places.Places, "choose", fail)
    waiting = Client(asked, ask("what", pictures[0]))
  for client in (active, waiting):
    assert client.end().reason == "error"
    assert client.end().message == "RuntimeError: out of memory"
  asked.close()
  assert not asked.ready
  with pytest.raises(request.Closed, match="the device failed: RuntimeError"):
    Client(asked, ask("what", pictures[0]))


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(max_tokens=LENGTH + 1), "max_tokens is 12, expected 1 to 11"),
    (dict(max_tokens=0), "max_tokens is 0, expected 1 to 11"),
    (dict(temperature=-1), "temperature is -1, expected 0 or more"),
    (dict(temperature=float("nan")), "temperature is nan, expected 0 or more"),
    (dict(top_p=0.0), r"top_p is 0.0, expected a mass in \(0, 1\]"),
    (dict(top_log_probs=21), "top_log_probs is 21, expected 0 to 20"),
    (dict(deadline=0), "deadline is 0, expected seconds above 0"),
    (dict(stop=("a", "")), "stop is .*, expected texts of at least one"),
    (dict(adapter="quries"), 'unknown adapter "quries".*"queries"'),
    (dict(images=()), "0 pictures for the model, expected at least one"),
    (dict(prompt="a" * 50), "prompt has .* tokens behind 4 of its pictures"),
    (dict(prompt="a <eos>"), "<eos> stands within the prompt"),
    (dict(grammar="regex"), "grammar is 'regex', expected what grammar.make"),
    (dict(images=(np.full((3, 3, 3), 7.0),) * 2), r"images\[0\]"),
  ],
)
def test_a_request_that_cannot_be_answered_is_refused(
  refuses, pictures, options, message
):
  fields = dict(prompt="what", images=(pictures[0],), max_tokens=3) | options
  with typecheck.off(), pytest.raises(ValueError, match=message):
    refuses.submit(request.Request(**fields), None, None)


@pytest.fixture(scope="module")
def refuses(tiny, adapted, tokenizer):
  options = dict(places=3, max_prompt=40, max_tokens=LENGTH)
  found = engine.Engine(*tiny, tokenizer, adapters=adapted, **options)
  yield found
  found.close(0)


def test_a_grammar_of_another_tokenizer_is_refused(refuses, pictures):
  other = automaton.anything(700, 1)
  with pytest.raises(
    ValueError, match="made for 700 tokens, the tokenizer has"
  ):
    refuses.submit(ask("what", pictures[0], grammar=other), None, None)


def test_an_adapter_that_changes_the_model_is_refused(tiny, adapted, tokenizer):
  model, params = adapted["queries"]
  norm = {"scale": params["llm"]["final_norm"]["scale"] + 1}
  params = {**params, "llm": {**params["llm"], "final_norm": norm}}
  message = (
    'adapter "a": 1 parameters beside it are not those of the model, such as '
    "llm/final_norm/scale; expected low-rank matrices alone"
  )
  with pytest.raises(ValueError, match=message):
    engine.Engine(*tiny, tokenizer, adapters={"a": (model, params)})


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(places=0), "places is 0, expected 1 or more"),
    (dict(max_prompt=4), "max_prompt is 4, expected 5 or more"),
  ],
)
def test_sizes_of_an_engine(tiny, tokenizer, options, message):
  with pytest.raises(ValueError, match=message):
    engine.Engine(*tiny, tokenizer, **options)


def test_a_cache_that_does_not_fit_is_refused(tiny, tokenizer, monkeypatch):
  monkeypatch.setattr(places, "free_memory", lambda params: 2**20)
  message = "the cache of 64 places of 516 positions takes .* 0.00 GiB left; l"
  with pytest.raises(ValueError, match=message):
    engine.Engine(*tiny, tokenizer, places=64)


def test_quantized_parameters(tiny, tokenizer, pictures):
  model, params = tiny
  flat = {}
  for name, x in tree.flatten(params).items():
    kind = quantization.kind_for(name, "int8")
    parts = quantization.quantize(name, x, kind) if kind else {}
    flat |= {f"{name}/{part}": y for part, y in parts.items()} or {name: x}
  params = tree.unflatten(flat)
  with contextlib.closing(
    engine.Engine(model, params, tokenizer, max_prompt=40, max_tokens=LENGTH)
  ) as asked:
    found = Client(asked, ask("what", pictures[0])).text()
  expected = paligemma.generate(
    model, params, tokenizer, pictures[:1], "what", max_decode_len=LENGTH
  )
  assert [found] == expected


def test_a_decoder_alone(tiny, tokenizer):
  model, params = tiny
  model, params = model.clone(img=None), {"llm": params["llm"]}
  with contextlib.closing(
    engine.Engine(model, params, tokenizer, max_prompt=40, max_tokens=LENGTH)
  ) as asked:
    found = [Client(asked, ask(prompt)) for prompt in PROMPTS]
    found = [x.text() for x in found]
    with pytest.raises(ValueError, match="no image tower, it embeds no"):
      asked.embed_images([])
  expected = paligemma.generate(
    model, params, tokenizer, None, PROMPTS, max_decode_len=LENGTH
  )
  assert found == expected
