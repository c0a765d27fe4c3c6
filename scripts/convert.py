"""Converts a checkpoint of any format that is read to one that is written.

    python -m scripts.convert SRC DST [--dtype bfloat16] [--check]
    python -m scripts.convert SRC DST.npz --quantize int8

SRC is whatever paligemma.load takes. DST is an .npz file with big_vision's
names, or with --format a folder for Hugging Face or Orbax; it appears when it
is complete. One tensor at a time is in memory; a model with adapters is as a
whole, and they are merged. A Hugging Face folder has a model card: what SRC
was trained on, how, and its scores, if it is of a run; with --quantize nf4 it
is for bitsandbytes. --check reads both again and prints a line per tensor and
the logits of one fixed input before and after.
"""

import hashlib
import math
from collections.abc import Mapping

import jax
import numpy as np
from etils import epath

from paligemma import init, io, quantization, tree
from paligemma.checkpoints import fit, formats, quantized_leaves
from paligemma.checkpoints.leaves import Leaf
from paligemma.checkpoints.lora import adapters
from paligemma.data import chat, naflex
from paligemma.lora import apply as lora
from paligemma.models import siglip
from trainers import command_line, run_card

_BLOCK_ELEMENTS = 2**24
# Tower -> its name for people, and fields that shapes do not tell.
_STATED = {
  "llm": (
    "decoder",
    *("sliding_window", "attn_logits_softcap", "final_logits_softcap"),
    *("query_scale", "norm_eps"),
  ),
  "txt": ("text tower", "pool_type", "text_len"),
}


def convert(
  src: epath.PathLike | Mapping[str, epath.PathLike],
  dst: epath.PathLike,
  *,
  format: str | None = None,
  dtype: str | None = None,
  quantize: str | None = None,
  tokenizer: epath.PathLike | None = None,
  res: int | None = None,
  adapter: epath.PathLike | None = None,
) -> str:
  """Writes the checkpoint `src` to `dst`; returns what to print about it."""
  if epath.Path(dst).exists():
    raise ValueError(f"{dst}: exists already, expected a new name")
  checkpoint, model, found, _ = _open(src, res, adapter)
  fields = io.model_fields(model)
  about = None
  if format == "huggingface":
    about = run_card.of(src, adapter)
    if fields["img"] is None and run_card.is_chat(adapter or src):
      fields["metadata"].setdefault("chat_template", chat.TEMPLATE)
  io.write(
    dst,
    found,
    fields,
    format=format,
    dtype=dtype,
    quantize=quantize,
    tokenizer=tokenizer,
    compute_dtype=dtype or checkpoint.compute_dtype,
    about=about,
  )
  return f"{checkpoint.describe()}\n{describe(model)}\nwrote {dst}"


def describe(model: io.Model) -> str:
  """Fields of the tower that reads text, on one line."""
  tower, fields = _text_fields(model)
  what, *names = _STATED[tower]
  return f"{what}: " + ", ".join(f"{name}={fields[name]}" for name in names)


def _text_fields(model):
  """The name of the tower that reads text, and its fields."""
  tower = next(reversed(model.towers))
  return tower, io.model_fields(model)[tower]


def check(
  src: epath.PathLike | Mapping[str, epath.PathLike],
  dst: epath.PathLike,
  *,
  res: int | None = None,
  adapter: epath.PathLike | None = None,
) -> tuple[str, bool]:
  """Compares two checkpoints tensor by tensor and by their logits.

  Returns:
    Tuple of the report, and True if `dst` is `src` rounded to its dtypes.
  """
  _, model, before, res = _open(src, res, adapter)
  _, model_after, after, _ = _open(dst, None)
  row = "{:<70} {:<18} {:<20} {:>9} {:>12}".format
  lines = [row("tensor", "shape", "dtype", "max diff", "sha256")]
  exact = True
  for name, leaf in before.items():
    equal, difference, digest = _compare(leaf, after[name])
    exact &= equal
    stored = [str(getattr(x, "kind", x.dtype)) for x in (leaf, after[name])]
    dtype = " -> ".join(dict.fromkeys(stored))
    shape = "x".join(map(str, leaf.shape))
    lines.append(row(name, shape, dtype, f"{difference:.1e}", digest[:12]))
  lines += _other_fields(model, model_after)
  first = _logits(model, before, res)
  second = _logits(model_after, after, res)
  lines.append(
    f"logits of one fixed input: max |logit| {np.abs(first).max():.4f}, "
    f"max difference {np.abs(first - second).max():.1e}"
  )
  verdict = "is SRC in its dtypes" if exact else "DIFFERS from SRC"
  lines.append(f"{len(before)} tensors: DST {verdict}, bit for bit")
  return "\n".join(lines), exact


def _logits(model, found, res, tokens=7):
  """float32[T, V] of one picture and text, the same for every checkpoint.

  Of a SigLIP float32[1, 1].
  """
  image, is_siglip = None, isinstance(model, siglip.Model)
  if model.img is not None:
    patch = model.img.patch_size
    is_naflex = is_siglip and siglip.is_naflex(model)
    side = patch * model.img.grid if is_naflex else res - res % patch
    ramp = np.linspace(-1, 1, side, dtype=np.float32)
    y, x = np.meshgrid(ramp, ramp, indexing="ij")
    image = np.stack([y, x, y * x], axis=-1)[None]
    if is_naflex:
      image = naflex.patchify(image[0], patch, model.img.grid**2)
      image = jax.tree.map(lambda x: x[None], image)
  _, fields = _text_fields(model)
  text = np.arange(2, 2 + fields.get("text_len", tokens), dtype=np.int32)
  text = text[None] * 9973 % fields["vocab_size"]
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  dtypes = {name: leaf.dtype for name, leaf in found.items()}
  arrays = {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device)
    for name, x in quantized_leaves.storage(found, dtypes, None).items()
  }
  params = quantized_leaves.place_all(found, arrays)

  @jax.jit
  def forward(params, image, text):
    variables = {"params": tree.unflatten(params)}
    if is_siglip:
      zimg, ztxt, out = model.apply(variables, image, text)
      return zimg @ ztxt.T * out["t"][None]
    return model.apply(variables, image, text, jax.numpy.zeros_like(text))[0]

  return np.asarray(forward(params, image, text)[0])


def _open(path, res, adapter=None):
  """The checkpoint, its model, its leaves as the model has them, and `res`."""
  checkpoint = formats.open(path)
  model, res = io.model_of(checkpoint, res=res)
  if adapter is None and lora.lora_of(model) is None:
    return checkpoint, model, fit.fit(checkpoint, init.shapes(model, res)), res
  model, params = io.load(path, res=res)
  if adapter is not None:
    model, params = adapters.load_adapter(adapter, model, params)
  model, params = lora.merge_lora(model, params)
  found = {n: Leaf.of(np.asarray(x)) for n, x in tree.flatten(params).items()}
  return checkpoint, model, quantized_leaves.paired(found), res


def _compare(before, after):
  """(Equal after rounding, max float32 difference, SHA-256 of the new.)"""
  if isinstance(after, quantized_leaves.Pair):
    return _compare_pair(before, after)
  digest = hashlib.sha256()
  equal, difference = before.shape == after.shape, 0.0
  rows = after.shape[0] if after.shape else 1
  count = max(_BLOCK_ELEMENTS * rows // max(math.prod(after.shape), 1), 1)
  for start in range(0, rows, count) if equal else ():
    index = tuple(slice(0, size) for size in after.shape)
    if index:
      index = (slice(start, min(start + count, rows)), *index[1:])
    old, new = before.read(index=index), after.read(index=index)
    digest.update(new.tobytes())
    equal &= old.astype(new.dtype).tobytes() == new.tobytes()
    both = old.astype(np.float32), new.astype(np.float32)
    if new.size:
      difference = max(difference, float(np.abs(both[0] - both[1]).max()))
  return equal, difference, digest.hexdigest()


def _compare_pair(before, after):
  """`_compare` for a matrix that is quantized in DST."""
  new = _arrays(after)
  is_pair = isinstance(before, quantized_leaves.Pair)
  name, kind, scale = after.name, after.kind, new[quantization.SCALE]
  if is_pair:
    old = _arrays(before)
  else:
    old = quantized_leaves.read(name, before, kind)
  equal = all(np.array_equal(old[part], new[part]) for part in new)
  digest = hashlib.sha256(new[kind].tobytes() + scale.tobytes()).hexdigest()
  difference = 0.0
  for rows in () if is_pair else quantized_leaves.blocks(name, before):
    block = before.read(np.float32, (rows,))
    own = scale[rows] if len(scale) == before.shape[0] else scale
    pair = {kind: new[kind][rows], quantization.SCALE: own}
    back = np.asarray(quantization.dequantize(pair, np.float32))
    difference = max(difference, float(np.abs(block - back).max()))
  return equal, difference, digest


def _arrays(pair):
  return {part: leaf.read() for part, leaf in pair.arrays.items()}


def _other_fields(before, after):
  """Notes on fields that DST cannot store, so that a loader must set them."""
  tower, old = _text_fields(before)
  _, new = _text_fields(after)
  return [
    f"note: {name}={old[name]} in SRC, DST loads with {new[name]}; give it to "
    f"paligemma.load as {tower}=dict({name}={old[name]!r})"
    for name in old
    if old[name] != new[name]
  ]


def main() -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument("src", metavar="SRC")
  parser.add_argument("dst", metavar="DST")
  parser.add_argument(
    "--format", help="default: npz, if DST ends so", choices=sorted(io.WRITERS)
  )
  parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
  parser.add_argument("--quantize", choices=quantization.KINDS)
  parser.add_argument("--tokenizer", help="file, or its folder, to write too")
  parser.add_argument("--decoder", help="SRC is an image tower, this its Gemma")
  parser.add_argument("--adapter", help="LoRA weights to merge, as of predict")
  parser.add_argument("--res", type=int, help="resample the position embedding")
  parser.add_argument("--check", action="store_true")
  args = vars(parser.parse_args())
  src, dst, again = args.pop("src"), args.pop("dst"), args.pop("check")
  decoder = args.pop("decoder")
  if again and args["quantize"] and args["format"] == "huggingface":
    raise ValueError(
      f"{dst}: --check reads DST again, which only transformers can of one in "
      f"{args['quantize']}; leave --check out"
    )
  whole = {"img": src, "llm": decoder} if decoder else src
  print(convert(whole, dst, **args))
  if again:
    report, exact = check(whole, dst, res=args["res"], adapter=args["adapter"])
    print(report)
    if not exact:
      raise ValueError(f"{dst}: is not what {src} holds")


if __name__ == "__main__":
  command_line.run(main)
