"""/v1/chat/completions as OpenAI's, for prompts about pictures.

A message's text is the prompt of PaliGemma, its image_url parts the pictures.
Gemma alone is given the conversation in the template it was trained with. A
field that has no effect here is refused, except at the value that means none.
"""

import json
import secrets
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import Field

from paligemma.data import chat
from paligemma.decoding.grammar import automaton
from paligemma.serving.request import End, Token
from paligemma.serving.request import Request as EngineRequest
from scripts.serving import answers, pictures_in
from scripts.serving.errors import Refused
from scripts.serving.fields import Strict
from scripts.serving.served import Served

router = APIRouter()

_LEAST_LOG_PROB = -9999.0  # as OpenAI writes what is too unlikely


class TextPart(Strict):
  """A text of a message."""

  type: Literal["text"]
  text: str


class ImageUrl(Strict):
  """A picture: a data URI, base64, or an address on an allowed host."""

  url: str
  detail: Literal["auto"] = "auto"


class ImagePart(Strict):
  """A picture of a message."""

  type: Literal["image_url"]
  image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(Strict):
  """A turn of a conversation."""

  role: Literal["user", "assistant"]
  content: str | list[Part]


class StreamOptions(Strict):
  """What a stream holds besides the answer."""

  include_usage: bool = False


class JsonSchema(Strict):
  """A schema that the answer follows."""

  name: str = ""
  description: str = ""
  schema_: dict[str, Any] = Field(alias="schema")
  strict: bool = True


class ResponseFormat(Strict):
  """The form of an answer, as OpenAI names it."""

  type: Literal["text", "json_object", "json_schema"]
  json_schema: JsonSchema | None = None


class StructuredOutputs(Strict):
  """The form of an answer, as vLLM names it: one of these.

  `grammar` is a text for paligemma.decoding.grammar: 'boxes(["cat"])'.
  """

  json_: dict[str, Any] | None = Field(None, alias="json")
  regex: str | None = Field(None, max_length=4000)
  choice: list[str] | None = Field(None, min_length=1, max_length=1000)
  grammar: str | None = Field(None, max_length=4000)


class ChatRequest(Strict):
  """What is asked."""

  model: str
  messages: list[Message] = Field(min_length=1, max_length=256)
  stream: bool = False
  stream_options: StreamOptions = StreamOptions()
  n: int = Field(1, ge=1, le=16)
  max_tokens: int | None = Field(None, ge=1)
  max_completion_tokens: int | None = Field(None, ge=1)
  temperature: float = Field(0.0, ge=0, le=2)
  top_p: float = Field(1.0, gt=0, le=1)
  seed: int | None = Field(None, ge=-(2**63), lt=2**63)
  logprobs: bool = False
  top_logprobs: int = Field(0, ge=0, le=20)
  stop: str | Annotated[list[str], Field(max_length=4)] = ""
  response_format: ResponseFormat | None = None
  structured_outputs: StructuredOutputs | None = None
  frequency_penalty: Literal[0] = 0
  presence_penalty: Literal[0] = 0
  user: str = ""


def chat_prompt(messages: list[Message], served: Served) -> str:
  """The text that a model is given for a conversation.

  Raises:
    Refused: PaliGemma is given more than one turn, or the turns of Gemma do not
      alternate.
  """
  turns = [{"role": x.role, "content": _text(x)} for x in messages]
  if served.sees or not served.has_turns:
    if len(turns) > 1 or turns[0]["role"] != "user":
      raise Refused(
        400,
        f"{len(turns)} messages, the last of {turns[-1]['role']}, but the model"
        " answers one prompt: expected one message of the user",
        param="messages",
      )
    return turns[0]["content"]
  try:
    text, spans = chat.render([*turns, {"role": "model", "content": "."}])
  except ValueError as error:
    raise Refused(400, error, param="messages") from None
  return text[: spans[-1][1]]


def _text(message):
  if isinstance(message.content, str):
    return message.content
  texts = (x.text for x in message.content if isinstance(x, TextPart))
  return "\n".join(texts)


def _images(messages, served):
  found = [
    (f"messages.{i}.content.{k}.image_url.url", part.image_url.url)
    for i, message in enumerate(messages)
    if not isinstance(message.content, str)
    for k, part in enumerate(message.content)
    if isinstance(part, ImagePart)
  ]
  if len(found) > served.limits.pictures:
    raise Refused(
      400,
      f"{len(found)} pictures, at most {served.limits.pictures}",
      param="messages",
    )
  return tuple(
    pictures_in.read(text, where, served.limits, served.hosts)
    for where, text in found
  )


def _form(asked):
  """The arguments of Served.compile; none for any text."""
  wanted = []
  form = asked.response_format
  if form and form.type == "json_object":
    wanted.append(("json_schema", '{"type": "object"}'))
  elif form and form.type == "json_schema":
    if form.json_schema is None:
      raise Refused(
        400,
        'type "json_schema" needs "json_schema": {"schema": ...}',
        param="response_format",
      )
    wanted.append(("json_schema", json.dumps(form.json_schema.schema_)))
  if given := asked.structured_outputs:
    if given.json_ is not None:
      wanted.append(("json_schema", json.dumps(given.json_)))
    if given.regex is not None:
      wanted.append(("regex", given.regex))
    if given.choice is not None:
      wanted.append(("choices", *given.choice))
    if given.grammar is not None:
      wanted.append(("make", given.grammar))
  if len(wanted) > 1:
    raise Refused(
      400,
      f"{len(wanted)} forms of the answer, expected one of response_format and "
      "structured_outputs",
      param="structured_outputs",
    )
  return wanted[0] if wanted else ()


def engine_requests(
  asked: ChatRequest, served: Served, grammar: automaton.Grammar | None
) -> list[EngineRequest]:
  """What the engine is asked: as many requests as answers are wanted.

  Raises:
    Refused, ValueError: the request does not fit the model.
  """
  most = served.tokens(asked.max_completion_tokens or asked.max_tokens)
  if asked.top_logprobs and not asked.logprobs:
    raise Refused(
      400, "top_logprobs needs logprobs: true", param="top_logprobs"
    )
  one = isinstance(asked.stop, str)
  stop = [asked.stop] * bool(asked.stop) if one else asked.stop
  if not all(0 < len(text) <= 200 for text in stop):
    raise Refused(400, "expected texts of 1 to 200 characters", param="stop")
  first = secrets.randbits(31) if asked.seed is None else asked.seed
  adapter = served.adapter(asked.model)
  prompt = chat_prompt(asked.messages, served)
  images = _images(asked.messages, served)
  return [
    EngineRequest(
      prompt,
      images,
      adapter,
      max_tokens=most,
      temperature=asked.temperature,
      top_p=asked.top_p,
      seed=(first + i) % 2**31,
      stop=tuple(stop),
      grammar=grammar,
      top_log_probs=asked.top_logprobs,
      deadline=served.deadline,
    )
    for i in range(asked.n)
  ]


@router.post("/v1/chat/completions")
async def complete(
  asked: ChatRequest,
  request: Request,
  cancels: Annotated[ExitStack, Depends(answers.cancelling)],
) -> Response:
  """Answers a prompt about pictures, in one piece or as a stream."""
  served = request.app.state.served
  form = _form(asked)
  grammar = await served.compile(*form) if form else None

  def make():
    return engine_requests(asked, served, grammar)

  made = _Reply(asked, served)
  if asked.stream:
    events = await answers.start(served, make, cancels)
    # Errors before the first token still have a status of their own.
    first = await events.get()
    if isinstance(first[1], End):
      answers.check(first[1])
    return StreamingResponse(
      made.stream(first, events),
      media_type="text/event-stream",
      headers={"cache-control": "no-store"},
    )
  return JSONResponse(made.whole(await answers.whole(served, make, cancels)))


class _Reply:
  """The JSON of one reply."""

  def __init__(self, asked, served):
    self._asked, self._served = asked, served
    self._id = f"chatcmpl-{uuid.uuid4().hex}"
    self._created = int(time.time())

  def whole(self, found: list[answers.Answer]) -> dict[str, Any]:
    choices = [
      {
        "index": i,
        "message": {
          "role": "assistant",
          "content": answer.end.text,
          "refusal": None,
        },
        "logprobs": self._log_probs(answer.tokens),
        "finish_reason": answer.end.reason,
      }
      for i, answer in enumerate(found)
    ]
    return self._head("chat.completion", choices) | {
      "usage": _usage([answer.end for answer in found])
    }

  async def stream(
    self, event: tuple[int, Token | End], events: answers.Events
  ) -> AsyncIterator[str]:
    """Yields events of the reply; `event` is the first of the engine."""
    shows_usage = self._asked.stream_options.include_usage
    more = {"usage": None} if shows_usage else {}
    ends = {}
    sent = [""] * self._asked.n

    def chunk(index, delta, reason=None, tokens=()):
      choice = {
        "index": index,
        "delta": delta,
        "logprobs": self._log_probs(tokens) if tokens else None,
        "finish_reason": reason,
      }
      return _sse(self._head("chat.completion.chunk", [choice]) | more)

    try:
      for i in range(self._asked.n):
        yield chunk(i, {"role": "assistant", "content": ""})
      while True:
        i, found = event
        if isinstance(found, End):
          answers.check(found)
          ends[i] = found
          # What was held back, as it might have become a stop text.
          if rest := found.text[len(sent[i]) :]:
            yield chunk(i, {"content": rest})
          yield chunk(i, {}, found.reason)
          if len(ends) == self._asked.n:
            break
        elif found.text or self._asked.logprobs:
          sent[i] += found.text
          yield chunk(i, {"content": found.text}, tokens=[found])
        event = await events.get()
    except Refused as error:
      yield _sse(error.body())
    else:
      if shows_usage:
        usage = {"usage": _usage(ends.values())}
        yield _sse(self._head("chat.completion.chunk", []) | usage)
    yield "data: [DONE]\n\n"

  def _head(self, kind, choices):
    return {
      "id": self._id,
      "object": kind,
      "created": self._created,
      "model": self._asked.model,
      "choices": choices,
    }

  def _log_probs(self, tokens):
    if not self._asked.logprobs:
      return None
    eos = self._served.tokenizer.eos_id
    return {
      "content": [
        self._token(token.id, token.log_prob)
        | {"top_logprobs": [self._token(*pair) for pair in token.top]}
        for token in tokens
        if token.id != eos
      ],
      "refusal": None,
    }

  def _token(self, number, log_prob):
    written = self._served.written(number)
    return {
      "token": written.decode(errors="replace"),
      "logprob": max(log_prob, _LEAST_LOG_PROB),
      "bytes": list(written),
    }


def _usage(ends):
  prompt = max(end.prompt_tokens for end in ends)
  completion = sum(end.tokens for end in ends)
  return {
    "prompt_tokens": prompt,
    "completion_tokens": completion,
    "total_tokens": prompt + completion,
  }


def _sse(data):
  return f"data: {json.dumps(data)}\n\n"
