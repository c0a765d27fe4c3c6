r"""Conversations as the text that Gemma's instruction-tuned models were given.

    [{"role": "user", "content": "Hi"}, {"role": "model", "content": "Hello"}]

    <start_of_turn>user\nHi<end_of_turn>\n
    <start_of_turn>model\nHello<end_of_turn>\n

Source: the chat template of google/gemma-2b-it and google/gemma-2-2b-it on
Hugging Face.
"""

from collections.abc import Iterable, Mapping, Sequence

from paligemma import messages as text_messages
from paligemma.data.tokenizer import Tokenizer

START, END = "<start_of_turn>", "<end_of_turn>"

# `render` for transformers, as Jinja; the tokenizer writes no bos before it.
TEMPLATE = """\
{{ bos_token }}
{%- for message in messages %}
{%- set role = 'model' if message.role == 'assistant' else message.role %}
{%- if role != ('user', 'model')[loop.index0 % 2] %}
{{- raise_exception('turns alternate, first the user, then the model') }}
{%- endif %}
{{- '<start_of_turn>' + role + '\\n' }}
{{- message.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<start_of_turn>model\\n' }}
{%- endif %}
"""

# What data of other models calls the turns.
_ROLES = {"user": "user", "model": "model", "assistant": "model"}

Span = tuple[int, int]


def render(
  messages: Sequence[Mapping[str, str]],
) -> tuple[str, list[Span]]:
  """Returns a conversation as text, and the spans that are not the model's.

  Those end where an answer of the model begins; its end of turn belongs to it.
  The last line break is left out, so that the text ends as an answer does.

  Args:
    messages: {"role": "user" or "model", "content": text}, in turn, first the
      user's. "assistant" is read as "model".

  Raises:
    ValueError: A turn is not as described, is empty or spells out a control
      token of the template.
  """
  if not isinstance(messages, Sequence) or isinstance(messages, str):
    raise ValueError(
      f"messages is {text_messages.shown(repr(messages))}, expected a list of "
      '{"role": ..., "content": ...}'
    )
  text, spans, start = "", [], 0
  for i, message in enumerate(messages):
    role, content = _turn(message, i)
    text += f"{START}{role}\n"
    if role == "model":
      spans.append((start, len(text)))
    text += content + END
    if role == "model":
      start = len(text)
    text += "\n"
  if not spans or start != len(text) - 1:
    raise ValueError(
      f"messages has {len(messages)} turns, expected one of the user, then one "
      "of the model, and so on, the last of the model"
    )
  return text[:-1], spans


def end_of_answer(tokenizer: Tokenizer, prompt: str) -> int:
  """Returns the id of what ends the answer to a prompt: END, or eos.

  It is END where the prompt ends as a turn of the model begins, and where that
  is one piece of the vocabulary.
  """
  ids = tokenizer.encode(END) if prompt.endswith(f"{START}model\n") else []
  return ids[0] if len(ids) == 1 else tokenizer.eos_id


def end_of_answers(tokenizer: Tokenizer, prompts: Iterable[str]) -> int:
  """Returns what ends all answers, see `end_of_answer`: END, or else eos."""
  end = tokenizer.eos_id
  for prompt in prompts:
    end = end_of_answer(tokenizer, prompt)
    if end == tokenizer.eos_id:
      break
  return end


def answer(tokenizer: Tokenizer, prompt: str, ids: list[int]) -> str:
  """Returns the text of an answer up to its end, see `end_of_answer`."""
  end = end_of_answer(tokenizer, prompt)
  return tokenizer.decode(ids[: ids.index(end)] if end in ids else ids)


def _turn(message, i):
  """Returns the role and the content of message i."""
  expected = ("user", "model")[i % 2]
  found = message if isinstance(message, Mapping) else {}
  role = _ROLES.get(str(found.get("role")))
  content = found.get("content")
  if role != expected or not isinstance(content, str):
    raise ValueError(
      f"messages[{i}] is {text_messages.shown(repr(message))}, expected "
      f'{{"role": "{expected}", "content": a text}}; turns alternate, other '
      "roles there are not"
    )
  content = content.strip()
  if not content:
    raise ValueError(f"messages[{i}] is empty, expected a text")
  for token in (START, END):
    if token in content:
      raise ValueError(
        f"messages[{i}] holds {token}, which the template writes around it"
      )
  return role, content
