"""Names of classes in templates."""

import re

import pytest

from paligemma.data import class_texts
from paligemma.data.siglip_tokenizer import SiglipTokenizer


@pytest.fixture(scope="module")
def tok(t5_model, tmp_path_factory):
  path = tmp_path_factory.mktemp("t5") / "spiece.model"
  path.write_bytes(t5_model)
  return SiglipTokenizer(path)


def test_every_class_is_in_every_template(tok):
  found = class_texts.make_texts(
    tok, ["Red_circle", "a, b"], ["A photo of {}.", "{}!"]
  )
  assert found == [
    "a photo of red circle",
    "red circle",
    "a photo of a, b",
    "a, b",
  ]
  assert class_texts.make_texts(tok, ["x"], "one {}") == ["one x"]


@pytest.mark.parametrize(("name", "count"), [("short", 7), ("long", 72)])
def test_sets_of_templates(tok, name, count):
  templates = class_texts.TEMPLATES[name]
  assert len(set(templates)) == len(templates) == count
  assert all(x.count("{}") == 1 for x in templates)
  found = class_texts.make_texts(tok, ["cat"], name)
  assert found == [x.replace("{}", "cat") for x in templates]
  assert "a photo of a cat" in found


@pytest.mark.parametrize(
  ("names", "templates", "message"),
  [
    (["a", 3], "{}", "class_names[1] is int, expected a text"),
    (
      ["a"],
      "shorter",
      'templates[0] is "shorter", expected a text with "{}" f',
    ),
    (["a"], ["{}", 3], 'templates[1] is "3", expected a text with "{}" f'),
    (["a"], "x", '"{}" for the name of a class, or one of: short, long'),
  ],
)
def test_bad_names_and_templates(tok, names, templates, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    class_texts.make_texts(tok, names, templates)
