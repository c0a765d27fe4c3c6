"""Writes Hugging Face directories: PaliGemma, Gemma and SigLIP 1 and 2."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from paligemma import disk, messages, tree
from paligemma.checkpoints import (
  errors,
  layouts,
  model_card,
  names,
  safetensors,
)
from paligemma.checkpoints.huggingface import bitsandbytes, layout
from paligemma.checkpoints.huggingface import config as huggingface_config
from paligemma.checkpoints.huggingface import metadata as huggingface_metadata
from paligemma.checkpoints.huggingface import model_card as huggingface_card
from paligemma.checkpoints.huggingface import read as huggingface_read
from paligemma.checkpoints.huggingface import tokenizer as huggingface_tokenizer
from paligemma.checkpoints.leaves import BLOCK_BYTES, Computed, Leaf, nbytes
from paligemma.parameters import (
  EMBEDDING,
  LOGIT_BIAS,
  POSITIONS,
  TEXT_EMBEDDING,
)


def save(
  path: epath.PathLike,
  arrays: Mapping[str, Any],
  *,
  img: Mapping[str, Any] | None,
  llm: Mapping[str, Any] | None = None,
  txt: Mapping[str, Any] | None = None,
  metadata: Mapping[str, Any] | None = None,
  tokenizer: Any = None,
  dtype: Any = None,
  about: model_card.About | None = None,
  quantize: str | None = None,
  max_shard_bytes: float = 5e9,
) -> None:
  """Writes a directory that transformers opens with `from_pretrained`.

  Beside the files of transformers there is a model card, README.md, and for a
  Gemma the NOTICE that its terms ask for. Tensors are fetched, cast and written
  one at a time. The directory appears under its name when it is complete. With
  several processes let one write.

  Args:
    path: Local directory to make, with its parents. It may not exist.
    arrays: Name -> Leaf, NumPy or JAX array, in scan or loop layout.
    img: Fields of vit.Model; None for a Gemma alone, without image token.
    llm: Fields of gemma.Model: the sizes, and those that are not its defaults.
    txt: Fields of text_tower.Model, in the place of `llm`: a SigLIP.
    metadata: Checkpoint.metadata, for the files beside the weights. Row
      "image_token_id" of the table stands for an image. Default: the one after
      the last; rows are added up to the next multiple of 64, all of them the
      mean of the table, which gives them the mean of the logits: never the
      largest.
    tokenizer: As in tokenizer.save. Default: no tokenizer is written.
    dtype: Of all tensors, default as they are. config.json names that of the
      table of embeddings, in which transformers then holds them all.
    about: How the model came to be, for the model card. Default: unknown.
    quantize: "nf4" rounds the matrices of the decoder, see bitsandbytes.py.
    max_shard_bytes: Most bytes in a file, unless one tensor alone has more.

  Raises:
    ValueError: `path` exists or is not local; arrays are missing, too many or
      of other shapes than img and llm say; or transformers has no such model.
  """
  if "://" in str(path):
    raise ValueError(f"{path}: expected a directory of the local file system")
  path = pathlib.Path(path)
  if path.exists():
    raise ValueError(f"{path}: exists, expected a new directory to write to")
  metadata = metadata or {}
  if txt is not None:
    _save_siglip(
      path,
      arrays,
      img=img,
      txt=txt,
      metadata=metadata,
      tokenizer=tokenizer,
      dtype=dtype,
      about=about,
      max_shard_bytes=max_shard_bytes,
    )
    return
  num_rows = llm["vocab_size"]
  image_token_id = num_positions = None
  with errors.named(path):
    if img is not None:
      num_positions = _num_positions(arrays)
      image_token_id = metadata.get("image_token_id")
      if image_token_id is None:
        image_token_id = num_rows
        num_rows = huggingface_read.padded_rows(num_rows)
    entries = layout.entries(img, llm, num_positions)
    _check(entries, arrays)
    hub_key = layout.gemma_key if img is None else layout.hub_key
    table = arrays[EMBEDDING]
    table_dtype = np.dtype(dtype or table.dtype)
    tensors = _tensors(arrays, entries, str, dtype)
    tensors[layout.TABLE] = _table(table, num_rows, table_dtype)
    for entry in filter(lambda x: bitsandbytes.is_matrix(x.key), entries):
      if quantize:
        matrix = _tensor(arrays, entry, np.float32)
        parts = bitsandbytes.pack(matrix, str(table_dtype))
        tensors |= {entry.key + end: part for end, part in parts.items()}
    tensors = {hub_key(key): tensor for key, tensor in tensors.items()}
    config = huggingface_config.make(
      img=img,
      llm=llm,
      num_positions=num_positions,
      rows=num_rows,
      image_token_id=image_token_id,
      dtype=str(table_dtype),
    )
    if quantize:
      quantized = bitsandbytes.config(str(table_dtype))
      config["quantization_config"] = quantized
  with disk.folder(path) as folder:
    huggingface_metadata.write_json(folder / "config.json", config)
    huggingface_metadata.write(folder, metadata, config)
    if tokenizer is not None:
      huggingface_tokenizer.save(folder, tokenizer, image_token_id)
    huggingface_card.write(
      folder, path.name, {"img": img, "llm": llm}, _count(arrays), about
    )
    _write_tensors(folder, tensors, max_shard_bytes)


def _save_siglip(
  path,
  arrays,
  *,
  img,
  txt,
  metadata,
  tokenizer,
  dtype,
  about,
  max_shard_bytes,
) -> None:
  with errors.named(path):
    _check_siglip(img, txt, arrays)
    num_positions = None if "grid" in img else _num_positions(arrays)
    entries = layout.entries(img, None, num_positions, txt)
    _check(entries, arrays)
    tensors = _tensors(arrays, entries, layout.siglip_key, dtype)
    joined = {}
    for key, tensor in tensors.items():
      joined.setdefault(layout.joined_key(key), []).append(tensor)
    config = huggingface_config.make_siglip(
      img=img,
      txt=txt,
      num_positions=num_positions,
      dtype=str(np.dtype(dtype or arrays[TEXT_EMBEDDING].dtype)),
    )
  with disk.folder(path) as folder:
    huggingface_metadata.write_json(folder / "config.json", config)
    huggingface_metadata.write(folder, metadata, config)
    if tokenizer is not None:
      huggingface_tokenizer.save_siglip(folder, tokenizer, txt["text_len"])
    huggingface_card.write(
      folder, path.name, {"img": img, "txt": txt}, _count(arrays), about
    )
    tensors = {
      key: parts[0] if len(parts) == 1 else _concatenated(parts)
      for key, parts in joined.items()
    }
    _write_tensors(folder, tensors, max_shard_bytes)


def _check_siglip(img, txt, arrays) -> None:
  """Raises a ValueError for what transformers' SigLIP does not have."""
  wanted = (
    ("img pool_type", img["pool_type"], "map"),
    ("img num_classes", img["num_classes"], None),
    ("img posemb", img.get("posemb", "learn"), "learn"),
    ("txt pool_type", txt["pool_type"], "last"),
  )
  for what, value, expected in wanted:
    if value != expected:
      raise ValueError(
        f"{what} is {value!r}, expected {expected!r}: transformers' SigLIP has "
        "no other; write an npz"
      )
  if LOGIT_BIAS not in arrays:
    raise ValueError(
      f"there is no bias {LOGIT_BIAS} of the logits, expected one: "
      "transformers' SigLIP has it; write an npz"
    )


def _count(arrays):
  return sum(math.prod(x.shape) for x in arrays.values())


def _tensors(arrays, entries, hub_key, dtype):
  """Key on the hub -> tensor."""
  tensors = {hub_key(x.key): _tensor(arrays, x, dtype) for x in entries}
  for name, tensor in tensors.items():
    if tensor.dtype not in names.FLOATS:
      raise ValueError(f"{name}: dtype {tensor.dtype}, expected a float")
  return tensors


def _num_positions(arrays) -> int:
  if POSITIONS not in arrays:
    raise ValueError(
      f"{POSITIONS} is missing, expected a learned position embedding"
    )
  shape = tuple(arrays[POSITIONS].shape)
  if len(shape) != 3 or math.isqrt(shape[1]) ** 2 != shape[1]:
    raise ValueError(f"{POSITIONS}: shape {shape}, expected (1, P, D)")
  return shape[1]


def _check(entries, arrays) -> None:
  found = {name: tuple(x.shape) for name, x in arrays.items()}
  found = layouts.stack(found, layouts.stack_shapes)
  if lines := tree.compare(names.leaf_shapes(entries), found):
    raise ValueError(
      f"arrays are not those of the model, {len(lines)} differ: "
      f"{messages.listed(lines)}"
    )


def _tensor(arrays, entry, dtype) -> Computed:
  """A part of one of the arrays, which are in scan or loop layout."""
  name, at = entry.leaf, entry.at
  if name not in arrays:
    name, at = layouts.layer_name(name, at[0]), at[1:]
  array = arrays[name]
  dtype = np.dtype(dtype or array.dtype)

  def make(index):
    if isinstance(array, Leaf):
      part = array.read(dtype, tuple(slice(i, i + 1) for i in at))
    else:
      part = np.asarray(array[at]).astype(dtype, copy=False)
    return entry.to_theirs(part.reshape(entry.our_shape))[index]

  return Computed(entry.their_shape, dtype, make)


def _concatenated(parts) -> Computed:
  """Tensors of one shape, one after the other."""
  rows, *rest = parts[0].shape
  return Computed(
    (len(parts) * rows, *rest),
    np.result_type(*(part.dtype for part in parts)),
    lambda index: np.concatenate([part[...] for part in parts])[index],
  )


def _table(array, num_rows, dtype) -> Computed:
  """The table of embeddings, padded with the mean of its rows."""
  length, width = array.shape

  def make(index):
    table = np.empty((num_rows, width), dtype)
    total = np.zeros(width, np.float64)
    count = max(BLOCK_BYTES // table[0].nbytes, 1)
    for start in range(0, length, count):
      rows = slice(start, min(start + count, length))
      if isinstance(array, Leaf):
        table[rows] = array.read(dtype, (rows,))
      else:
        table[rows] = np.asarray(array[rows])
      # Of the rows as they are written: a file read back gives the same again.
      total += table[rows].astype(np.float32).sum(axis=0, dtype=np.float64)
    table[length:] = (total / length).astype(np.float32)
    return table[index]

  return Computed((num_rows, width), dtype, make)


def _write_tensors(path, tensors, max_shard_bytes) -> None:
  """Fills one file after the other, in the order of names."""
  shards, room = [], 0
  for name, tensor in sorted(tensors.items()):
    if not shards or nbytes(tensor) > room:
      shards.append({})
      room = max_shard_bytes
    shards[-1][name] = tensor
    room -= nbytes(tensor)
  weight_map = {}
  for i, shard in enumerate(shards, 1):
    file = huggingface_read.FILE
    if len(shards) > 1:
      file = file.replace(".", f"-{i:05d}-of-{len(shards):05d}.")
    # Without this format transformers refuses the file.
    safetensors.save(path / file, shard, {"format": "pt"})
    weight_map |= dict.fromkeys(shard, file)
  if len(shards) == 1:
    return
  total_size = sum(map(nbytes, tensors.values()))
  index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
  huggingface_metadata.write_json(path / huggingface_read.INDEX, index)
