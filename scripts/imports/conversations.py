"""Conversations: JSON or JSONL of LLaVA, ShareGPT or Qwen-VL, or a folder.

The formats of LLaVA (docs/Finetune_Custom_Data.md), ShareGPT as LLaMA-Factory
reads it (data/README.md, mllm_demo.json), Qwen-VL's fine-tuning (README.md,
finetune) and Hugging Face's chat templates:

    {"image": "a.jpg", "conversations": [
      {"from": "human", "value": "<image>\\nWhat is it?"},
      {"from": "gpt", "value": "A cat."}]}
    {"images": ["a.jpg"], "messages": [
      {"role": "user", "content": "<image>What is it?"},
      {"role": "assistant", "content": "A cat."}]}
    {"messages": [{"role": "user", "content": [
      {"type": "image", "image": "a.jpg"},
      {"type": "text", "text": "What is it?"}]}, ...]}
"""

import re

from scripts.imports import entries, files, folders

_ROLES = {
  "human": "user",
  "user": "user",
  "gpt": "assistant",
  "assistant": "assistant",
  "system": "system",
}
_TURNS = ("conversations", "messages")
_IMAGES = ("image", "images", "image_path")
_PLACEHOLDER = "<image>"
_AROUND = re.compile(rf"^(?:{_PLACEHOLDER}\s*)+|(?:\s*{_PLACEHOLDER})+$")
# Qwen-VL: Picture 1: <img>a.jpg</img>
_TAGGED = re.compile(r"(?:Picture \d+:\s*)?<img>(.*?)</img>")
# What stands for something that is not in the text.
_OTHER_PLACEHOLDER = re.compile(r"<(?:video|audio|bbox|ref-object)>")
# Boxes and points in the notations of Qwen-VL, Kosmos-2 and others.
_NOTATION = re.compile(
  r"</?(?:box|ref|quad|point|phrase|object|grounding)>|<\|(?:box|object)_\w+\|>"
)


def read(request: entries.Request) -> entries.Entries:
  """Reads questions and answers out of conversations.

  Each answer is an example, with the question before it, the images shown until
  then and nothing that was said earlier. For captions the first answer counts,
  whatever was asked. Messages of the system are left out, and <image>, as
  images come first. Boxes in another notation stay text.

  The name of a file tells its split. Without `images`, images are relative to
  the folder of their file. The task is "vqa" or "caption".
  """
  task, problems = request.task, request.problems
  if task not in ("vqa", "caption"):
    raise ValueError(
      f"{request.src}: conversations have no boxes; expected --task vqa or "
      "caption"
    )
  root, found = folders.root_and_files(request.src, ".json", ".jsonl")
  for path in found:
    split = entries.split_of(path.relative_to(root))
    folder = request.images or path.parent
    if path.suffix == ".jsonl":
      conversations = files.read_json_lines(path)
    else:
      conversations = files.read_list(path, "conversation")
    for where, fields in conversations:
      with problems:
        examples = list(_examples(fields, folder, where, problems))
        if task == "caption":
          examples = examples[:1]
        for question, answer, shown in examples:
          annotated = {"question": question, "answers": (answer,)}
          if task == "caption":
            annotated = {"captions": (answer,)}
          yield entries.Entry(
            shown,
            where,
            split,
            fields={"id": fields["id"]} if "id" in fields else {},
            **annotated,
          )


def _examples(fields, folder, where, problems):
  """Yields question, answer and the images shown until then."""
  if not isinstance(fields, dict):
    raise ValueError(f"{where}: expected fields, found {fields!r:.60}")
  turns = list(_turns(fields, where, problems))
  named = _named(fields, where)
  placed = sum(turn["placed"] for turn in turns)
  inside = [name for turn in turns for name in turn["inside"]]
  if placed and placed != len(named):
    raise ValueError(
      f"{where}: {placed} times {_PLACEHOLDER} for {len(named)} pictures, "
      "expected one for each"
    )
  if inside and named and (placed or inside != named):
    raise ValueError(
      f"{where}: pictures within the messages and beside them, expected one of "
      "both"
    )
  shown = [] if placed or inside else list(named)
  named, question = iter(named), None
  for number, turn in enumerate(turns):
    place, text = turn["place"], turn["text"]
    expected = "user" if question is None else "assistant"
    if turn["role"] != expected:
      raise ValueError(
        f"{place}: of the {turn['role']}, expected one of the {expected}"
      )
    if not text:
      raise ValueError(f"{place}: an empty text")
    shown += [next(named) for _ in range(turn["placed"])] + turn["inside"]
    if question is None:
      question = text
      continue
    if not shown:
      raise ValueError(f"{place}: no picture, expected one before an answer")
    if number > 1:
      problems.note("answers that lose what was said before them", place)
    if _NOTATION.search(text):
      problems.note("boxes of another notation in answers stay text", place)
    images = tuple(_file(name, folder, place, problems) for name in shown)
    yield question, text, images
    question = None
  if question is not None or not turns:
    raise ValueError(f"{where}: the last message is no answer")


def _turns(fields, where, problems):
  """Yields messages: role, text, number of placeholders and own images."""
  key = files.key_of(fields, _TURNS)
  for i, message in enumerate(files.get(fields, key, list, where)):
    place = f"{where}: message {i}"
    llava = isinstance(message, dict) and "from" in message
    keys = ("from", "value") if llava else ("role", "content")
    name = files.get(message, keys[0], str, place)
    if name.lower() not in _ROLES:
      raise ValueError(
        f"{place}: unknown role {name!r:.40}, expected one of "
        f"{', '.join(_ROLES)}"
      )
    if (role := _ROLES[name.lower()]) == "system":
      problems.note("messages of the system left out", place)
      continue
    text, inside = _content(message, keys[1], place)
    placed = text.count(_PLACEHOLDER)
    if placed and role == "assistant":
      raise ValueError(f"{place}: {_PLACEHOLDER} in an answer")
    if other := _OTHER_PLACEHOLDER.search(text):
      raise ValueError(
        f"{place}: {other[0]} stands for what is not read, expected text and "
        f"{_PLACEHOLDER}"
      )
    text = _AROUND.sub("", text.strip())
    if _PLACEHOLDER in text:
      problems.note(f"{_PLACEHOLDER} taken out of the middle of a text", place)
      text = re.sub(rf"\s*{_PLACEHOLDER}\s*", " ", text)
    yield {
      "place": place,
      "role": role,
      "text": text.strip(),
      "placed": placed,
      "inside": inside,
    }


def _content(message, key, where):
  """A text with placeholders, and the images that it names itself."""
  content = files.get(message, key, (str, list), where)
  if isinstance(content, str):
    return _TAGGED.sub("", content), _TAGGED.findall(content)
  texts, inside = [], []
  for i, part in enumerate(content):
    place = f"{where}: part {i}"
    part = part if isinstance(part, dict) else {"?": part}
    kind = part.get("type", "image" if "image" in part else "text")
    if kind == "text" and "text" in part:
      texts.append(files.get(part, "text", str, place))
    elif kind == "image" and part.get("image"):
      inside.append(files.get(part, "image", str, place))
    elif kind == "image":
      texts.append(_PLACEHOLDER)
    else:
      raise ValueError(
        f"{place}: expected a text or an image, found {content[i]!r:.60}"
      )
  return "\n".join(texts), inside


def _named(fields, where):
  """The images that are named beside the messages."""
  key = next((key for key in _IMAGES if fields.get(key)), None)
  found = fields.get(key, [])
  found = [found] if isinstance(found, str) else found
  if not isinstance(found, list) or not all(isinstance(x, str) for x in found):
    raise ValueError(
      f'{where}: expected paths under "{key}", found {found!r:.60}'
    )
  return found


def _file(name, folder, where, problems):
  name = name.removeprefix("file://")
  if re.match(r"\w{2,}:", name):
    raise ValueError(
      f"{where}: the picture is {name!r:.60}, expected a path of a file"
    )
  return folders.find(name, [folder], where, problems)
