"""The official client of OpenAI, against an engine that repeats its prompts."""

import concurrent.futures
import json

import httpx
import openai
import pytest

from paligemma.serving import request
from scripts.serving import openai_chat
from scripts.serving import served as served_lib
from tests.scripts.serving import conftest, plain_engine


@pytest.fixture
def client(address):
  with openai.OpenAI(
    base_url=f"{address}/v1", api_key="none", max_retries=0
  ) as made:
    yield made


def about(*pictures, text="caption en"):
  parts = [{"type": "image_url", "image_url": {"url": x}} for x in pictures]
  content = [*parts, {"type": "text", "text": text}]
  return [{"role": "user", "content": content}]


def test_answer_about_pictures(client, data_uri):
  done = client.chat.completions.create(
    model="tiny", messages=about(data_uri, data_uri)
  )
  (choice,) = done.choices
  assert choice.message.content == "base: caption en, 2"
  assert choice.finish_reason == "stop"
  assert done.usage.prompt_tokens == 7
  assert done.usage.total_tokens == 7 + done.usage.completion_tokens


def test_base64_alone_is_a_picture(client, data_uri):
  done = client.chat.completions.create(
    model="cats", messages=about(data_uri.partition(",")[2])
  )
  assert done.choices[0].message.content == "cats: caption en, 1"


def test_stream_is_the_answer(client, data_uri):
  chunks = list(
    client.chat.completions.create(
      model="dogs",
      messages=about(data_uri),
      stream=True,
      stream_options={"include_usage": True},
    )
  )
  *most, last = chunks
  text = "".join(x.choices[0].delta.content or "" for x in most)
  assert text == "dogs: caption en, 1"
  assert [x.choices[0].finish_reason for x in most][-2:] == [None, "stop"]
  assert last.choices == [] and last.usage.completion_tokens > 3


def test_several_answers_have_seeds_of_their_own(make_served, data_uri):
  served = make_served()
  with (
    conftest.running(served) as server,
    openai.OpenAI(base_url=f"{server.address}/v1", api_key="none") as client,
  ):
    done = client.chat.completions.create(
      model="tiny",
      messages=about(data_uri),
      n=3,
      seed=11,
      temperature=0.5,
      top_p=0.9,
      stop="x",
      max_completion_tokens=2,
    )
    assert [x.index for x in done.choices] == [0, 1, 2]
    assert {x.finish_reason for x in done.choices} == {"length"}
    asked = served.engine.asked
  assert [x.seed for x in asked] == [11, 12, 13]
  assert {(x.temperature, x.top_p, x.stop) for x in asked} == {
    (0.5, 0.9, ("x",))
  }
  assert asked[0].images[0].shape == (17, 31, 3)


@pytest.mark.parametrize("stream", [False, True])
def test_log_probs(client, tiny_tokenizer, stream):
  made = client.chat.completions.create(
    model="tiny",
    messages=about(),
    logprobs=True,
    top_logprobs=2,
    stream=stream,
  )
  choices = [x.choices[0] for x in (made if stream else [made])]
  content = [x for c in choices if c.logprobs for x in c.logprobs.content]
  written = b"".join(bytes(x.bytes) for x in content)
  assert written.decode() == "base: caption en, 0"
  assert {x.logprob for x in content} == {-0.5}
  assert all(len(x.top_logprobs) == 2 for x in content)


def test_models(client):
  assert [x.id for x in client.models.list()] == ["tiny", "cats", "dogs"]
  assert client.models.retrieve("cats").parent == "tiny"
  with pytest.raises(openai.NotFoundError, match='no model "birds"'):
    client.models.retrieve("birds")


# What is wrong -> the beginning of the message.
WRONG = {
  "tools": ({"tools": []}, "tools: is not supported here"),
  "audio": ({"modalities": ["audio"]}, "modalities: is not supported"),
  "penalty": ({"frequency_penalty": 1}, "frequency_penalty: Input should be 0"),
  "unknown": ({"guided_regex": "a"}, "guided_regex: is not supported"),
  "n": ({"n": 17}, "n: Input should be less than or equal to 16"),
  "text": ({"max_tokens": "5"}, "max_tokens: Input should be a valid integer"),
  "long": ({"max_tokens": 65}, "65 tokens, this server answers with at most"),
  "top": ({"top_logprobs": 2}, "top_logprobs needs logprobs"),
  "stops": (
    {"stop": list("abcde")},
    "stop.str: Input should be a valid string; stop.list",
  ),
  "stop": ({"stop": [""]}, "expected texts of 1 to 200"),
  "form": ({"response_format": {"type": "json_schema"}}, 'type "json_schema"'),
  "turns": (
    {"messages": [{"role": "user", "content": "a"}] * 2},
    "2 messages, the last of user, but the model answers one prompt",
  ),
  "system": (
    {"messages": [{"role": "system", "content": "a"}]},
    "messages.0.role: Input should be 'user' or 'assistant'",
  ),
  "part": (
    {"messages": [{"role": "user", "content": [{"type": "file"}]}]},
    "messages.0.content",
  ),
  "engine": (
    {"messages": [{"role": "user", "content": "a <image>"}]},
    "prompt holds <image>",
  ),
  "detail": (
    {
      "messages": [
        {
          "role": "user",
          "content": [
            {"type": "image_url", "image_url": {"url": "a", "detail": "low"}}
          ],
        }
      ]
    },
    "messages.0.content",
  ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_supported_is_named(client, name):
  fields, message = WRONG[name]
  with pytest.raises(openai.BadRequestError) as caught:
    client.chat.completions.create(
      model="tiny", messages=about(), extra_body=fields
    )
  assert caught.value.body["message"].startswith(message)
  assert caught.value.type == "invalid_request_error"


def test_null_is_as_if_left_out(address):
  asked = {"model": "tiny", "messages": about(), "tools": None, "stop": None}
  answer = httpx.post(f"{address}/v1/chat/completions", json=asked)
  assert answer.status_code == 200


def test_unknown_model(client):
  with pytest.raises(openai.NotFoundError) as caught:
    client.chat.completions.create(model="birds", messages=about())
  assert caught.value.code == "model_not_found"


def test_full_and_late(make_served, tiny_tokenizer):
  engine = plain_engine.PlainEngine(tiny_tokenizer, seconds=0.2, max_waiting=1)
  with (
    conftest.running(make_served(engine, deadline=0.5)) as server,
    openai.OpenAI(
      base_url=f"{server.address}/v1", api_key="none", max_retries=0
    ) as client,
    concurrent.futures.ThreadPoolExecutor() as pool,
  ):

    def status(_):
      with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="tiny", messages=about())
      return caught.value

    found = sorted(pool.map(status, range(2)), key=lambda x: x.status_code)
  assert [x.status_code for x in found] == [429, 504]
  assert found[0].response.headers["retry-after"] == "1"


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_frees_the_place(make_served, tiny_tokenizer, stream):
  engine = plain_engine.PlainEngine(tiny_tokenizer, seconds=0.1)
  asked = {"model": "tiny", "messages": about(text="a " * 50), "stream": stream}
  with conftest.running(make_served(engine, deadline=30)) as server:
    with (
      pytest.raises(httpx.ReadTimeout),
      httpx.stream(
        "POST",
        f"{server.address}/v1/chat/completions",
        json=asked,
        timeout=httpx.Timeout(5, read=0.3 if not stream else 0.05),
      ) as answer,
    ):
      list(answer.iter_lines())
    for answer in list(engine.active):
      answer.join(10)
  assert engine.ends == {"cancelled": 1}


def test_gemma_is_given_the_template(make_served):
  served = make_served(sees=False)
  served.__dict__["has_turns"] = True
  turns = [
    openai_chat.Message(role=role, content=text)
    for role, text in (("user", "Hi"), ("assistant", "Yes?"), ("user", "Bye"))
  ]
  assert openai_chat.chat_prompt(turns, served) == (
    "<start_of_turn>user\nHi<end_of_turn>\n"
    "<start_of_turn>model\nYes?<end_of_turn>\n"
    "<start_of_turn>user\nBye<end_of_turn>\n"
    "<start_of_turn>model\n"
  )
  with pytest.raises(openai_chat.Refused, match=r"messages\[1\] is"):
    openai_chat.chat_prompt(turns[::2], served)


def test_a_stream_that_fails_says_so(make_served, tiny_tokenizer):
  engine = plain_engine.PlainEngine(tiny_tokenizer, seconds=0.1)
  asked = {"model": "tiny", "messages": about(), "stream": True}
  with conftest.running(make_served(engine, deadline=0.35)) as server:
    answer = httpx.post(f"{server.address}/v1/chat/completions", json=asked)
  *_, error, done, _ = answer.text.split("\n\n")
  assert done == "data: [DONE]"
  message = json.loads(error.removeprefix("data: "))["error"]["message"]
  assert message == "the deadline passed before the answer was complete"


def test_a_grammar_that_is_too_large(client, monkeypatch):
  monkeypatch.setattr(served_lib, "_MOST_BYTES", 999)
  with pytest.raises(openai.BadRequestError, match="expected at most 249 in a"):
    client.chat.completions.create(
      model="tiny",
      messages=about(),
      extra_body={"structured_outputs": {"regex": "a{9}"}},
    )


def test_errors_of_the_model(make_served, tiny_tokenizer):
  engine = plain_engine.PlainEngine(tiny_tokenizer)

  def fail(asked, on_token, on_end):
    on_end(request.End("error", "", 0, 0, "the device failed"))
    return lambda: None

  engine.submit = fail
  asked = {"model": "tiny", "messages": about()}
  with conftest.running(make_served(engine)) as server:
    url = f"{server.address}/v1/chat/completions"
    for stream in (False, True):
      answer = httpx.post(url, json={**asked, "stream": stream})
      assert answer.status_code == 500
      assert answer.json()["error"]["message"] == "the device failed"
    engine.closed = True
    del engine.submit
    answer = httpx.post(url, json=asked)
    assert answer.status_code == 503
    assert answer.json()["error"]["message"] == "the server is ending"
