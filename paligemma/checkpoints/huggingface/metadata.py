"""Reads and writes what a Hugging Face folder says beside its model.

    generation_config.json     how answers are decoded
    preprocessor_config.json   how pictures are resized; transformers 5 writes
                               it as "image_processor" in processor_config.json
    chat_template.jinja        or "chat_template" of chat_template.json or of
                               tokenizer_config.json

Sources: transformers 5.23 and 4.57, processing_utils.py,
image_processing_base.py, image_processing_utils_fast.py.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from absl import logging

from paligemma import disk
from paligemma.checkpoints.huggingface.config import SPECIAL_IDS

_GENERATION = "generation_config.json"
_PREPROCESSOR = "preprocessor_config.json"
_PROCESSOR = "processor_config.json"
_TEMPLATE = "chat_template.jinja"
_ADDED, _FAST = "added_tokens.json", "tokenizer.json"
_TOKENIZER = "tokenizer_config.json"
_TEMPLATES_IN_JSON = ("chat_template.json", _TOKENIZER)
# Of a PaliGemma that has none, for servers that ask for one: the pictures and
# the prompt of a message. The processor adds bos and the line break.
_PALIGEMMA_TEMPLATE = """\
{%- if messages | length != 1 %}
  {{- raise_exception("PaliGemma reads one message: pictures and a prompt") }}
{%- endif %}
{%- set content = messages[0].content %}
{%- if content is string %}
  {{- content }}
{%- else %}
  {%- for part in content if part.type == "image" %}
    {{- "<image>" }}
  {%- endfor %}
  {%- for part in content if part.type == "text" %}
    {{- part.text }}
  {%- endfor %}
{%- endif %}
"""

# Key of image.PREPROCESSING -> number of Pillow's filter. The first of a number
# is what it is read as.
_FILTERS = {"hf": 3, "reference": 2, "bicubic": 3, "bilinear": 2}
# What `generate` does, and this processor where it says nothing.
_PREPARED = {
  "do_normalize": True,
  "do_rescale": True,
  "do_resize": True,
  "image_mean": [0.5, 0.5, 0.5],
  "image_std": [0.5, 0.5, 0.5],
  "rescale_factor": 1 / 255,
}


def read(
  folder: pathlib.Path, *, has_images: bool, is_naflex: bool = False
) -> dict[str, Any]:
  """Reads the files beside config.json and the weights, if they are there.

  Returns:
    Checkpoint.metadata, without the image token.

  Raises:
    ValueError: One of the files is no JSON, or holds other values than it may.
  """
  found = {}
  if generation := _read_json(folder / _GENERATION):
    found["generation"] = generation
  template = _read_template(folder)
  if template not in (None, _PALIGEMMA_TEMPLATE):
    found["chat_template"] = template
  if has_images:
    processor = _read_processor(folder)
    default = "reference" if is_naflex else "hf"
    found["preprocessing"] = _preprocessing(folder, processor, default)
    if processor:
      found["processor"] = processor
  return found


def last_token_id(folder: pathlib.Path) -> int:
  """The largest id of a token in the tokenizer files of a folder, else -1.

  Raises:
    ValueError: One of the files is no JSON.
  """
  ids = [*_read_json(folder / _ADDED).values()]
  listed = _read_json(folder / _TOKENIZER).get("added_tokens_decoder")
  ids += [int(i) for i in listed or {} if i.isdecimal()]
  if not ids:
    listed = _read_json(folder / _FAST).get("added_tokens")
    ids += [x.get("id") for x in listed or [] if isinstance(x, dict)]
  return max((i for i in ids if type(i) is int), default=-1)


def write(
  folder: pathlib.Path, metadata: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
  """Writes the same files into a folder.

  Args:
    metadata: Checkpoint.metadata. Default of "preprocessing": "reference".
    config: That of config.json.
  """
  has_decoder = not config["model_type"].startswith("siglip")
  if has_decoder:
    generation = {**SPECIAL_IDS, **metadata.get("generation", {})}
    write_json(folder / _GENERATION, generation)
    template = metadata.get("chat_template")
    if template is None and "vision_config" in config:
      template = _PALIGEMMA_TEMPLATE
    if template is not None:
      (folder / _TEMPLATE).write_text(template, encoding="utf-8")
  vision = config.get("vision_config")
  if vision is None:
    return
  if side := vision.get("image_size"):
    family, of_size = "Siglip", {"size": {"height": side, "width": side}}
  else:
    family, of_size = "Siglip2", {"patch_size": vision["patch_size"]}
    of_size["max_num_patches"] = vision["num_patches"]
  if has_decoder:
    of_size["image_seq_length"] = vision["num_image_tokens"]
  preprocessing = metadata.get("preprocessing", "reference")
  if preprocessing not in _FILTERS:
    logging.warning(
      f'{folder}: transformers has no "{preprocessing}", pictures will be '
      "resized with its bicubic filter"
    )
  processor = {
    "do_convert_rgb": True,
    **_PREPARED,
    "image_processor_type": f"{family}ImageProcessor",
    "processor_class": f"{'PaliGemma' if has_decoder else family}Processor",
    **metadata.get("processor", {}),
    "resample": _FILTERS.get(preprocessing, 3),
    **of_size,
  }
  write_json(folder / _PREPROCESSOR, processor)


def _read_json(path):
  return disk.read_json(path) if path.exists() else {}


def _read_template(folder):
  if (folder / _TEMPLATE).exists():
    try:
      return (folder / _TEMPLATE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
      raise ValueError(f"{folder / _TEMPLATE}: cannot be read: {e}") from None
  for name in _TEMPLATES_IN_JSON:
    template = _read_json(folder / name).get("chat_template")
    if isinstance(template, str):
      return template
  return None


def _read_processor(folder):
  if (folder / _PREPROCESSOR).exists():
    return disk.read_json(folder / _PREPROCESSOR)
  processor = _read_json(folder / _PROCESSOR).get("image_processor", {})
  if not isinstance(processor, dict):
    raise ValueError(
      f"{folder / _PROCESSOR}: image_processor is no JSON object"
    )
  return processor


def _preprocessing(folder, processor, default):
  """The key of image.PREPROCESSING; warns of what else the processor does."""
  names = {number: name for name, number in reversed(_FILTERS.items())}
  names[None] = default  # of transformers' processor
  resample = processor.get("resample")
  known = isinstance(resample, int | None) and resample in names
  name = names[resample] if known else default
  differs = [] if known else ["resample"]
  for key, ours in _PREPARED.items():
    value = processor.get(key)
    if value is not None and not _is_close(value, ours):
      differs.append(key)
  if differs:
    listed = ", ".join(f"{key}={processor[key]!r:.40}" for key in differs)
    logging.warning(
      f"{folder}: its image processor has {listed}, which is not done here; "
      f'pictures are prepared as "{name}"'
    )
  return name


def _is_close(value, ours):
  if isinstance(ours, list):
    same_length = isinstance(value, list) and len(value) == len(ours)
    return same_length and all(map(_is_close, value, ours))
  if isinstance(ours, bool) or type(value) not in (int, float):
    return value is ours
  return abs(value - ours) < 1e-6


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
