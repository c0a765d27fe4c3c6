"""Examples of texts alone -> prompt and answer, for a decoder alone."""

from typing import Any

from paligemma.data import chat, example_fields
from paligemma.data.example_fields import Example


def read(example: Example, tokenizer: Any, *, train: bool) -> Example:
  r"""Returns an example with "prefix" and "suffix", as sequence.py takes them.

      {"text": t}          prefix "", suffix t: all of it is supervised
      {"suffix": s}        likewise
      {"prefix": p, ...}   as it is
      {"messages": m}      prefix "", suffix of all turns, of which those of the
                           model are supervised; without `train` prefix up to
                           the last answer, which is the suffix

  Args:
    example: After the ops.
    tokenizer: Of sequence.py; of Gemma for "messages".
    train: Whether the answer is learned.

  Raises:
    ValueError: It has none of these, or several; an image; an empty text; a
      conversation that chat.render refuses, or pieces that the tokenizer lacks.
  """
  if "image" in example:
    raise example_fields.error(
      example,
      "has an image, but the model has no image tower; read texts with kind "
      '"text_jsonl", or take a model that sees',
    )
  kinds = [key for key in ("text", "suffix", "messages") if key in example]
  prompts = not train and "prefix" in example
  if len(kinds) > 1 or not (kinds or prompts):
    names = [name for name in example if not name.startswith("_")]
    found = " and ".join(kinds) or f"the keys {', '.join(names) or 'none'}"
    raise example_fields.error(
      example,
      'expected one of "text", "suffix" (with or without "prefix") and '
      f'"messages", found {found}',
    )
  example = {"prefix": "", **example}
  if "text" in example:
    example["suffix"] = example_fields.text(example, "text")
    if not example.pop("text").strip():
      raise example_fields.error(example, "the text is empty")
  if "messages" in example:
    try:
      text, spans = chat.render(example.pop("messages"))
    except ValueError as error:
      raise example_fields.error(example, error) from None
    _check_pieces(example, tokenizer)
    if train:
      example |= {"suffix": text, "unsupervised": spans}
    else:
      start = spans[-1][1]
      answer = text[start:].removesuffix(chat.END)  # where decoding stops
      example |= {"prefix": text[:start], "suffix": answer}
  return example


def _check_pieces(example, tokenizer):
  for token in (chat.START, chat.END):
    if len(tokenizer.encode(token)) != 1:
      raise example_fields.error(
        example,
        f"messages need {token} as one piece of the vocabulary, which this "
        "tokenizer lacks; give Gemma's",
      )
