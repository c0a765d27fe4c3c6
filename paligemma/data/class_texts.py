"""Names of classes as texts, for zero-shot classification.

A class is described by its name in several templates, whose embeddings are
averaged: arXiv:2103.00020 (CLIP), section 3.1.4.
"""

from collections.abc import Sequence

from paligemma import messages
from paligemma.data.siglip_tokenizer import SiglipTokenizer

_PICTURES = (
  "a photo",
  "a detailed photo",
  "a cropped photo",
  "a blurry photo",
  "a bright photo",
  "a dark photo",
  "a black and white photo",
  "a photo from above",
  "a drawing",
  "a painting",
  "a sketch",
  "a rendering",
)
_OBJECTS = ("a {}", "the {}", "one {}", "a small {}", "a large {}", "many {}")

# Sets of templates by name. The CLIP paper tells what such texts are for:
# quality, number and size of the object, and kind of picture.
TEMPLATES = {
  "short": (
    "{}",
    "a photo of a {}",
    "a photo of the {}",
    "a detailed photo of a {}",
    "a photo of a small {}",
    "a photo of a large {}",
    "a drawing of a {}",
  ),
  "long": tuple(f"{x} of {y}" for x in _PICTURES for y in _OBJECTS),
}


def read_names(
  tok: SiglipTokenizer, class_names: Sequence[str]
) -> dict[str, int]:
  """Returns the names as they stand in a text, with the index of each.

  Args:
    tok: Says how texts are canonicalized.
    class_names: "_" is read as a space, commas stay.

  Raises:
    ValueError: There is none, one is empty or no text, or two are equal.
  """
  if isinstance(class_names, str) or not len(class_names):
    raise ValueError(
      f"class_names is {class_names!r:.60}, expected a list of names"
    )
  names = {}
  for i, given in enumerate(class_names):
    if not isinstance(given, str):
      kind = type(given).__name__
      raise ValueError(f"class_names[{i}] is {kind}, expected a text")
    name = read_name(tok, given)
    if not name:
      raise ValueError(f"class_names[{i}] is empty: {given!r:.60}")
    if name in names:
      twice = f"class_names[{names[name]}] and class_names[{i}]"
      raise ValueError(f'{twice} are both "{messages.shown(name)}"')
    names[name] = i
  return names


def read_name(tok: SiglipTokenizer, name: str) -> str:
  """Returns one name as it stands in a text."""
  return tok.canonicalize(name.replace("_", " "), keep=",")


def make_texts(
  tok: SiglipTokenizer,
  class_names: Sequence[str],
  templates: str | Sequence[str],
) -> list[str]:
  """Returns the canonical texts of all classes, each in every template.

  Args:
    tok, class_names: As of `read_names`.
    templates: Texts with "{}" for the name, or the name of a set in TEMPLATES.

  Raises:
    ValueError: As `read_names`; or a template lacks "{}".
  """
  names = read_names(tok, class_names)
  if isinstance(templates, str):
    templates = TEMPLATES.get(templates, [templates])
  if not templates:
    raise ValueError('templates is empty, expected texts with "{}" in them')
  for i, template in enumerate(templates):
    if not isinstance(template, str) or "{}" not in template:
      raise ValueError(
        f'templates[{i}] is "{messages.shown(str(template))}", expected a text '
        'with "{}" for the name of a class, or one of: '
        f"{', '.join(TEMPLATES)}"
      )
  templates = [tok.canonicalize(x, keep="{}") for x in templates]
  return [x.replace("{}", name) for name in names for x in templates]
