"""Reads Hugging Face directories: PaliGemma, Gemma and SigLIP 1 and 2, NaFlex.

What transformers writes with `save_pretrained`, in any release: config.json,
and model.safetensors or shards with model.safetensors.index.json. Three ways to
name a tensor are in use, the first of them on the hub:

    language_model.model.layers.0...   vision_tower.vision_model.encoder...
    model.language_model.layers.0...   model.vision_tower.vision_model...
    language_model.model.layers.0...   vision_tower.encoder...
"""

import dataclasses
import math
import pathlib
import re

import numpy as np
from etils import epath

from paligemma import disk, messages, parameters
from paligemma.checkpoints import names, safetensors
from paligemma.checkpoints.checkpoint import Checkpoint
from paligemma.checkpoints.huggingface import config as huggingface_config
from paligemma.checkpoints.huggingface import layout
from paligemma.checkpoints.huggingface import metadata as huggingface_metadata
from paligemma.checkpoints.leaves import BLOCK_BYTES, Leaf, Mapped, nbytes

FILE = "model.safetensors"
INDEX = f"{FILE}.index.json"

_SIGLIP = (("text_model.", "text."), ("vision_model.", "vision."))
_IMAGE_TOWER = (
  (r"(?=text_model\.|logit_)", "other half of SigLIP: "),
  (r"(vision_model\.)?", "vision."),
)
# Prefixes in a file -> those of huggingface/layout.py; the first that matches.
_PREFIXES = {
  "paligemma": (
    (r"(language_model\.)?(?=lm_head\.)", "text."),
    (r"(model\.)?language_model\.(model\.)?", "text."),
    (r"(model\.)?vision_tower\.(vision_model\.)?", "vision."),
    (r"(model\.)?multi_modal_projector\.", "projector."),
  ),
  "gemma": ((r"(model\.)?", "text."),),
  "gemma2": ((r"(model\.)?", "text."),),
  "siglip": _SIGLIP,
  "siglip2": _SIGLIP,
  "siglip_vision_model": _IMAGE_TOWER,
  "siglip2_vision_model": _IMAGE_TOWER,
}

_LM_HEAD = "text.lm_head.weight"
# Pools the image into one vector, for SigLIP alone.
_POOLING = r"vision\.head\..*"
# No parameters of ours; the first two are buffers that old releases stored.
_UNUSED = (
  r"text\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
  r"(text|vision)\.embeddings\.position_ids",
  r"other half of SigLIP: .*",
  re.escape(_LM_HEAD),  # the table of embeddings again
)


def open(path: epath.PathLike) -> Checkpoint:
  """Opens a local directory; reads config.json and headers alone.

  Only `lm_head.weight`, where it is stored beside the table that it is tied to,
  is read, to make sure that both are one.

  Args:
    path: Directory of a PaliGemma, of a SigLIP ("img/...", "txt/...", "t" and
      "b"), of a Gemma (which gives "llm/..." alone) or of the image tower of a
      SigLIP ("img/...", with its pooling head if it is there).

  Returns:
    Checkpoint in scan layout. The vocabulary of a PaliGemma ends before its
    image token, if nothing but padding to a multiple of 64 rows follows, and no
    token of the tokenizer in the directory; otherwise all rows are kept, and
    `metadata` names it.

  Raises:
    ValueError: Weights are pickled, quantized, damaged or not what config.json
      says; or our models cannot do what it says, such as scaling RoPE.
  """
  path = pathlib.Path(path)
  if not path.is_dir():
    raise ValueError(f"{path}: no such directory, expected one of Hugging Face")
  config = huggingface_config.read(path / "config.json")
  raw = _read_headers(path)
  img, llm, txt = config.image_tower, config.decoder, config.text_tower
  if llm is None:
    raw = layout.split_joined(raw)
  keys = {}  # name in layout.py -> key in the files
  for key in raw:
    name = normalize(key, config.model_type)
    if name in keys:
      raise ValueError(f"{path}: {keys[name]} and {key} are one parameter")
    keys[name] = key
  if _LM_HEAD not in keys and not config.tied:
    raise ValueError(
      f"{path}: tie_word_embeddings is false in config.json, expected logits "
      "from the table of embeddings"
    )
  pools = llm is None and any(re.fullmatch(_POOLING, name) for name in keys)
  unused, hub_key = (*_UNUSED, _POOLING), layout.hub_key
  if llm is None:
    unused, hub_key = _UNUSED, layout.siglip_key
  depth = max(sizes["depth"] for sizes in (img, llm, txt) if sizes)
  if depth > len(raw):
    raise ValueError(
      f"{path}: {len(raw)} tensors are too few for the {depth} layers of "
      "config.json"
    )
  entries = [
    dataclasses.replace(x, key=keys.get(x.key, hub_key(x.key)))
    for x in layout.entries(
      img, llm, img and img.get("num_positions"), txt, pools
    )
  ]
  ignored = {
    key
    for name, key in keys.items()
    if any(re.fullmatch(regex, name) for regex in unused)
  }
  wanted = {key: x for key, x in raw.items() if key not in ignored}
  if lines := names.differences(entries, wanted):
    raise ValueError(
      f"{path}: tensors are not those of config.json, {len(lines)} differ: "
      f"{messages.listed(lines)}"
    )
  if _LM_HEAD in keys:
    _check_tied(path, raw[keys[layout.TABLE]], raw[keys[_LM_HEAD]])
  found = names.leaves(entries, wanted)
  metadata = huggingface_metadata.read(
    path, has_images=img is not None, is_naflex="grid" in (img or ())
  )
  if (last := config.image_token_id) is not None:
    is_last = huggingface_metadata.last_token_id(path) <= last
    if is_last and llm["vocab_size"] == padded_rows(last):
      table = raw[keys[layout.TABLE]]
      cut = dataclasses.replace(table, shape=(last, *table.shape[1:]))
      found[parameters.EMBEDDING] = Leaf.of(cut)
    else:
      metadata["image_token_id"] = last
  return Checkpoint(
    path=str(path),
    format="Hugging Face",
    leaves=dict(sorted(found.items())),
    llm=config.llm,
    ignored=tuple(sorted(ignored)),
    metadata=metadata,
  )


def padded_rows(image_token_id: int) -> int:
  """Rows of a table that ends with the image token, a multiple of 64."""
  return math.ceil((image_token_id + 1) / 64) * 64


def _read_headers(path: pathlib.Path) -> dict[str, Mapped]:
  files = sorted(file.name for file in path.glob("*.safetensors"))
  if (path / INDEX).exists():
    if FILE in files:
      raise ValueError(f"{path}: holds {FILE} and {INDEX}, remove one of them")
    return _read_shards(path)
  if files == [FILE]:
    return safetensors.open(path / FILE)
  if files:
    raise ValueError(
      f"{path}: holds {', '.join(files[:3])} without {INDEX}, expected {FILE} "
      "alone, or shards with their index"
    )
  if pickled := sorted(path.glob("pytorch_model*.bin*")):
    raise ValueError(
      f"{pickled[0]}: pickled weights are refused, they can run code; where "
      "you trust them, convert them with transformers' save_pretrained(..., "
      "safe_serialization=True)"
    )
  raise ValueError(f"{path}: holds no weights, expected {FILE} or {INDEX}")


def _read_shards(path: pathlib.Path) -> dict[str, Mapped]:
  index = path / INDEX
  weight_map = disk.read_json(index).get("weight_map")
  if not isinstance(weight_map, dict) or not weight_map:
    raise ValueError(f"{index}: no weight_map, expected tensor -> file")
  for key, file in weight_map.items():
    if not isinstance(file, str) or pathlib.PurePath(file).name != file:
      raise ValueError(f"{index}: {key!r} is in {file!r}, expected a file name")
  found = {}
  for file in sorted(set(weight_map.values())):
    shard = safetensors.open(path / file)
    listed = {key for key, name in weight_map.items() if name == file}
    if differ := sorted(listed ^ shard.keys()):
      where = "the file" if differ[0] in shard else INDEX
      raise ValueError(
        f"{path / file}: does not agree with {INDEX}, {len(differ)} tensors "
        f"differ: {differ[0]!r} is in {where} alone"
      )
    found.update(shard)
  return found


def normalize(key: str, model_type: str) -> str:
  """The name in huggingface/layout.py of a tensor or a module.

  Args:
    key: In any of the spellings; another one is returned as it is.
    model_type: Of config.json.
  """
  for prefix, ours in _PREFIXES[model_type]:
    if m := re.match(prefix, key):
      return ours + key[m.end() :]
  return key


def _check_tied(path: pathlib.Path, table: Mapped, head: Mapped) -> None:
  """Raises unless the output matrix is the embedding table, bit for bit."""
  same = (table.shape, table.dtype) == (head.shape, head.dtype)
  count = max(BLOCK_BYTES * table.shape[0] // nbytes(table), 1)
  blocks = (slice(i, i + count) for i in range(0, table.shape[0], count))
  if not same or any(
    (table[rows].view(np.uint8) != head[rows].view(np.uint8)).any()
    for rows in blocks
  ):
    raise ValueError(
      f"{path}: lm_head.weight differs from embed_tokens.weight, expected one "
      "table for tokens in and logits out"
    )
