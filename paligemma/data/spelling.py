r"""Control tokens and locations spelled in texts.

Data of the Hugging Face ecosystem has texts such as "<image>caption en" and
"a cat<eos>". SentencePiece encodes these as letters, "<", "i", "m" ..., which
change the answer. They are removed where the layout has the token anyway:

    prompt  "<image> <bos>caption en\n"  ->  "caption en"
    answer  "a cat<eos>"                 ->  "a cat"

Anywhere else they are an error, and so are misspelled locations and mask codes:
"<loc100>", "<loc1024>", "<seg 5>".
"""

import re

from paligemma.data import location

CONTROL = ("<image>", "<bos>", "<eos>", "<pad>", "<unk>")

TEXTS = {
  "checked": "take off control tokens at their place, refuse them elsewhere, "
  "refuse malformed locations",
  "plain": "all is text, control tokens are letters like others",
}

_CONTROL = re.compile("|".join(map(re.escape, CONTROL)))
_LEADING = re.compile(r"(?:(?:<image>|<bos>)\s*)+")
# "<IMAGE>", "<image_0>", and what other models write: "</s>", "<|im_end|>".
_FOREIGN = re.compile(
  r"</?s>|<\|\w{1,30}\|>|\[/?inst\]|<(?:start|end)_of_turn>"
  r"|<(?:image|img|video|bos|eos|pad|unk)[\w /]{0,20}>",
  re.IGNORECASE,
)
_AROUND = 20  # characters shown on either side of what is wrong


def read_prompt(text: str, num_images: int) -> tuple[str, tuple[str, ...]]:
  r"""Returns a prompt without the control tokens that the layout adds.

  Returns:
    The prompt without leading "<image>" and "<bos>", white space after them,
    and behind images without trailing line breaks, as the layout adds these;
    and what was removed, of "<image>", "<bos>" and "line break".

  Raises:
    ValueError: The number of "<image>" in front is not that of the images, a
      control token stands elsewhere, or a location is malformed.
  """
  removed = []
  if match := _LEADING.match(text):
    for token, count in (("<image>", num_images), ("<bos>", 1)):
      if found := match[0].count(token):
        removed.append(token)
        if found != count:
          expected = f"{count} or none" if count else "none"
          raise ValueError(
            f"prompt begins with {found} {token}, expected {expected}: one for "
            "each image, and one <bos>"
          )
    text = text[match.end() :]
  stripped = text.rstrip("\r\n") if num_images else text
  if stripped != text:
    removed.append("line break")
  _check_control(stripped, "prompt")
  _check_pieces(stripped, "prompt")
  return stripped, tuple(removed)


def read_answer(
  text: str, *, learned: bool = True
) -> tuple[str, tuple[str, ...]]:
  """Returns an answer without a trailing "<eos>", which the layout adds.

  Returns:
    The answer; and ("<eos>",) if that was removed, else ().

  Raises:
    ValueError: A control token stands elsewhere, or an object in an answer that
      is a training target (learned) is malformed.
  """
  removed = ()
  rest = text.rstrip()
  while rest.endswith("<eos>"):
    text = rest = rest.removesuffix("<eos>").rstrip()
    removed = ("<eos>",)
  _check_control(text, "answer")
  if learned:
    _check_pieces(text, "answer")
    if problem := location.malformed(text):
      raise ValueError(f'{problem} in the answer "{_excerpt(text, 0)}"{_PLAIN}')
  return text, removed


def find_foreign(text: str) -> str:
  """Returns a control token of another model found in a text, or ""."""
  match = _FOREIGN.search(text)
  return match[0] if match else ""


_PLAIN = '; correct it, or set train.texts="plain" to read it as text'


def _check_control(text, kind):
  if match := _CONTROL.search(text):
    raise ValueError(
      f'{match[0]} stands within the {kind} "{_excerpt(text, match.start())}", '
      f"where it would be spelled in letters{_PLAIN}"
    )


def _check_pieces(text, kind):
  if match := location.find_misspelled(text):
    raise ValueError(
      f"{_excerpt(match[0], 0)} is no piece of the vocabulary, which has "
      f"<loc0000> to <loc1023> and <seg000> to <seg127>, in the {kind} "
      f'"{_excerpt(text, match.start())}"{_PLAIN}'
    )


def _excerpt(text, position):
  start, stop = max(position - _AROUND, 0), position + 2 * _AROUND
  before, after = "..." * (start > 0), "..." * (stop < len(text))
  return " ".join(f"{before}{text[start:stop]}{after}".split())
