"""What the tiny model answers over HTTP is what paligemma.generate answers."""

import asyncio
import base64
import functools
import io
import json
import random
import re

import httpx
import jax
import jsonschema
import numpy as np
import openai
import pytest
from PIL import Image, ImageDraw

import paligemma
from paligemma import tree
from paligemma.lora import apply as lora
from paligemma.models import mask_codec
from paligemma.serving import engine as engine_lib
from tests.scripts.serving import conftest

LENGTH = 12
PROMPTS = ["caption en", "answer en what digit is this?", "detect digit"]
SCHEMA = {
  "type": "object",
  "properties": {
    "seen": {"enum": ["cat", "dog"]},
    "n": {"type": "integer"},
    "sure": {"type": "boolean"},
  },
  "required": ["seen", "n", "sure"],
  "additionalProperties": False,
}


@pytest.fixture(scope="module")
def models(tiny_tokenizer):
  """Name -> model and parameters, of the base and an adapter of it."""
  base = paligemma.load(conftest.ASSETS / "tiny.npz")
  model, params = lora.enable_lora(*base, rank=2, alpha=4.0)
  flat, rng = tree.flatten(params), np.random.default_rng(0)
  for name, adapts in lora.is_adapter(flat).items():
    if adapts:
      drawn = rng.normal(0, 0.1, flat[name].shape)
      flat[name] = jax.numpy.asarray(drawn, "float32")
  return {"tiny": base, "drawn": (model, tree.unflatten(flat))}


@pytest.fixture(scope="module")
def pictures():
  """Pixels and data URIs of drawn circles."""
  found = []
  for i, colour in enumerate(("red", "blue")):
    picture = Image.new("RGB", (90 + 7 * i, 61), "white")
    ImageDraw.Draw(picture).ellipse((20, 10, 60, 50), fill=colour)
    file = io.BytesIO()
    picture.save(file, "PNG")
    text = base64.b64encode(file.getvalue()).decode()
    found.append((np.asarray(picture), f"data:image/png;base64,{text}"))
  return found


@pytest.fixture(scope="module")
def address(models, tiny_tokenizer, make_served):
  codec = paligemma.load_mask_codec(conftest.ASSETS / "tiny_mask_codec.npz")
  engine = engine_lib.Engine(
    *models["tiny"],
    tiny_tokenizer,
    adapters={"drawn": models["drawn"]},
    places=3,
    max_prompt=80,
    max_tokens=64,
  )
  served = make_served(
    engine,
    decode_masks=functools.partial(mask_codec.decode, codec),
  )
  with conftest.running(served) as server:
    yield server.address


@pytest.fixture
def client(address):
  with openai.OpenAI(
    base_url=f"{address}/v1", api_key="none", max_retries=0
  ) as made:
    yield made


def about(uri, prompt):
  url = {"type": "image_url", "image_url": {"url": uri}}
  return [{"role": "user", "content": [url, {"type": "text", "text": prompt}]}]


def test_many_at_once(address, models, tiny_tokenizer, pictures):
  """In random order, with two adapters, streamed and not, some cancelled."""
  expected = {
    (name, prompt, i): paligemma.generate(
      *model, tiny_tokenizer, [pixels], prompt, max_decode_len=LENGTH
    )[0]
    for name, model in models.items()
    for prompt in PROMPTS
    for i, (pixels, _) in enumerate(pictures)
  }
  assert len(set(expected.values())) > 4
  dice = random.Random(0)
  asked = [dice.choice(list(expected)) for _ in range(32)]

  async def ask(client, key, i):
    name, prompt, picture = key
    options = dict(
      model=name,
      messages=about(pictures[picture][1], prompt),
      max_tokens=LENGTH,
    )
    if i % 4 == 0:
      task = asyncio.ensure_future(client.chat.completions.create(**options))
      await asyncio.sleep(dice.random() / 4)
      task.cancel()
      return None
    if i % 2:
      done = await client.chat.completions.create(**options)
      return done.choices[0].message.content
    stream = await client.chat.completions.create(stream=True, **options)
    return "".join([x.choices[0].delta.content or "" async for x in stream])

  async def ask_all():
    async with openai.AsyncOpenAI(
      base_url=f"{address}/v1", api_key="none", max_retries=0
    ) as client:
      return await asyncio.gather(
        *(ask(client, key, i) for i, key in enumerate(asked))
      )

  answers = asyncio.run(ask_all())
  for i, (key, answer) in enumerate(zip(asked, answers, strict=True)):
    assert answer == (expected[key] if i % 4 else None)


@pytest.mark.parametrize("stream", [False, True])
def test_json_by_schema(client, pictures, stream):
  made = client.chat.completions.create(
    model="tiny",
    messages=about(pictures[0][1], "caption en"),
    response_format={
      "type": "json_schema",
      "json_schema": {"name": "seen", "schema": SCHEMA, "strict": True},
    },
    temperature=1.0,
    seed=3,
    stream=stream,
  )
  if stream:
    text = "".join(x.choices[0].delta.content or "" for x in made)
  else:
    text = made.choices[0].message.content
  jsonschema.validate(json.loads(text), SCHEMA)


@pytest.mark.parametrize(
  ("form", "allowed"),
  [
    ({"choice": ["a cat", "a dog"]}, r"a cat|a dog"),
    ({"regex": "[0-9]{2}:[0-9]{2}"}, r"\d\d:\d\d"),
    ({"grammar": 'boxes(["cat"])'}, r"(<loc\d{4}>){4} cat"),
    ({"json": {"type": "boolean"}}, "true|false"),
  ],
)
def test_structured_outputs(client, pictures, form, allowed):
  done = client.chat.completions.create(
    model="drawn",
    messages=about(pictures[0][1], "caption en"),
    extra_body={"structured_outputs": form},
  )
  assert re.fullmatch(allowed, done.choices[0].message.content)


def test_log_probs_are_the_models(client, pictures):
  done = client.chat.completions.create(
    model="tiny",
    messages=about(pictures[0][1], "caption en"),
    logprobs=True,
    top_logprobs=3,
  )
  content = done.choices[0].logprobs.content
  text = done.choices[0].message.content
  assert b"".join(bytes(x.bytes) for x in content).decode() == text
  for token in content:
    best, *others = token.top_logprobs
    assert best.token == token.token and best.logprob == token.logprob
    assert all(x.logprob <= best.logprob <= 0 for x in others)


def post(address, path, **asked):
  answer = httpx.post(f"{address}/v1/{path}", json=asked, timeout=60)
  assert answer.status_code == 200, answer.text
  return answer.json()


def test_tasks(address, models, tiny_tokenizer, pictures):
  (pixels, uri), _ = pictures

  def generated(prompt, name="tiny"):
    (answer,) = paligemma.generate(
      *models[name], tiny_tokenizer, [pixels], prompt
    )
    return answer

  found = post(address, "caption", image=uri)
  assert found["text"] == generated("caption en")
  assert (found["height"], found["width"]) == pixels.shape[:2]
  found = post(
    address, "answer", image=uri, question="what digit?", model="drawn"
  )
  assert found["text"] == generated("answer en what digit?", "drawn")
  found = post(address, "detect", image=uri, labels=["red circle"])
  assert found["text"] == generated("detect red circle")
  parsed = paligemma.parse(found["text"], pixels.shape[:2])
  assert [x["label"] for x in found["objects"]] == [x["label"] for x in parsed]
  for item, expected in zip(found["objects"], parsed, strict=True):
    assert item["box"] == pytest.approx(expected["box"], abs=0.01)
    assert 0 < item["score"] <= 1


def test_embeddings(client, pictures):
  """The client decodes base64, which it asks for by default."""
  uris = [uri for _, uri in pictures]
  found = client.embeddings.create(model="tiny", input=uris).data
  (again,) = client.embeddings.create(
    model="tiny", input=uris[1], encoding_format="float"
  ).data
  assert [x.index for x in found] == [0, 1]
  assert found[1].embedding == pytest.approx(again.embedding)
  assert found[0].embedding != found[1].embedding
  with pytest.raises(openai.BadRequestError, match="is no base64"):
    client.embeddings.create(model="tiny", input="a cat")


def test_a_decoder_alone(models, tiny_tokenizer, make_served):
  """It continues a prompt, as its tokenizer knows no template."""
  model, params = models["tiny"]
  alone = model.clone(img=None), {"llm": params["llm"]}
  engine = engine_lib.Engine(*alone, tiny_tokenizer, places=2)
  served = make_served(engine, sees=False)
  (expected,) = paligemma.generate(
    *alone, tiny_tokenizer, None, "the digit", max_decode_len=LENGTH
  )
  with conftest.running(served) as server:
    found = post(
      server.address,
      "chat/completions",
      model="tiny",
      messages=[{"role": "user", "content": "the digit"}],
      max_tokens=LENGTH,
    )
  assert found["choices"][0]["message"]["content"] == expected
