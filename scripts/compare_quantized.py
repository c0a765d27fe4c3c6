"""What a checkpoint loses in 8 and 4 bits: memory against answers.

    python -m scripts.compare_quantized CKPT --tokenizer FILE --data x.jsonl

CKPT is whatever paligemma.load takes, in full precision; x.jsonl is PaliGemma
JSONL with "image", "prefix" and "suffix". A row of the table per kind:

bytes: of the parameters, in memory.
max error, mean error: of the logits of all true answers, teacher-forced, from
those of full precision.
perplexity: of the true answers.
same tokens: of greedy decoding, the end of an answer among them. Answers are
compared token by token, up to the end of the longer one.
same answers: those that agree in all tokens.
exact match: answers that are the "suffix".

The model stands in memory in full precision and in one other kind at a time.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from paligemma import evals, io, messages, quantization, tree
from paligemma.data import preprocess, sources
from paligemma.data import tokenizer as tokenizer_lib
from paligemma.decoding import decode
from paligemma.models import paligemma as paligemma_model
from paligemma.training import sharding
from trainers import command_line

# Column -> format. What full precision lacks is that of a model that is equal.
_COLUMNS = {
  "bytes": "{:,}",
  **dict.fromkeys(("max_error", "mean_error", "perplexity"), "{:.4f}"),
  **dict.fromkeys(("same_tokens", "same_answers", "exact_match"), "{:.2%}"),
}
_EQUAL = {"max_error": 0, "mean_error": 0, "same_tokens": 1, "same_answers": 1}


def compare(
  ckpt: epath.PathLike,
  tokenizer: epath.PathLike,
  data: epath.PathLike,
  *,
  kinds: Sequence[str] = quantization.KINDS,
  limit: int | None = None,
  batch_size: int = 16,
  text_len: int = 64,
  max_decode_len: int = 32,
  dtype: str | None = None,
) -> dict[str, dict[str, float]]:
  """Measures what quantizing does to a checkpoint.

  Arguments are the options of the command line; `--help` explains them.

  Returns:
    {"full" or kind: {name: number}}, see above.

  Raises:
    ValueError: a mistake in the data or the checkpoint, or an unknown kind.
  """
  for kind in kinds:
    quantization.check_kind(kind)
  model, params = io.load(ckpt, dtype)
  if any(quantization.split(name) for name in tree.flatten(params)):
    raise ValueError(f"{ckpt}: is quantized, expected full precision")
  paligemma_model.check_whole(model, str(ckpt))
  layout = preprocess.Preprocess(
    tokenizer_lib.Tokenizer(tokenizer),
    res=paligemma_model.resolution(model, params),
    text_len=text_len,
    train=True,
  )
  evaluator = evals.Perplexity(
    "answers", sources.Jsonl(data), layout, batch_size=batch_size, limit=limit
  )
  expected = _decode(evaluator, model, params, max_decode_len)
  found = {"full": _measure(evaluator, model, params, expected)}
  for kind in kinds:
    # The computation is that of the full model, whatever the norms are in.
    _, less = io.load(ckpt, dtype, quantize=kind)
    decoded = _decode(evaluator, model, less, max_decode_len)
    found[kind] = {
      **_measure(evaluator, model, less, decoded),
      **_logit_errors(evaluator, model, params, less),
      **agreement(expected, decoded),
    }
  return found


def agreement(
  expected: Sequence[list[int]], found: Sequence[list[int]]
) -> dict[str, float]:
  """Compares answers id by id; the last id of each is its end token.

  Returns:
    {"same_tokens": share of equal ids, up to the end of the longer answer,
    "same_answers": share of equal answers}.
  """
  same = total = answers = 0
  for one, other in zip(expected, found, strict=True):
    same += sum(a == b for a, b in zip(one, other, strict=False))
    total += max(len(one), len(other))
    answers += one == other
  return {"same_tokens": same / total, "same_answers": answers / len(expected)}


def describe(found: Mapping[str, Mapping[str, Any]]) -> str:
  """The table of what `compare` returned."""
  rows = [("kind", *(name.replace("_", " ") for name in _COLUMNS))]
  for kind, values in found.items():
    values = _EQUAL | values
    cells = (form.format(values[name]) for name, form in _COLUMNS.items())
    rows.append((kind, *cells))
  return "\n".join(messages.aligned(rows))


def _measure(evaluator, model, params, decoded):
  """What is measured of one model; `decoded` are its answers as ids."""
  tok = evaluator.preprocess.tokenizer
  texts = (tok.decode([i for i in ids if i != tok.eos_id]) for ids in decoded)
  right = [
    text == evaluator.source[i]["suffix"] for i, text in enumerate(texts)
  ]
  mesh = sharding.make_mesh(data=1, devices=jax.devices()[:1])
  return {
    "bytes": sum(array.nbytes for array in jax.tree.leaves(params)),
    "perplexity": evaluator.run(model, params, mesh)["perplexity"],
    "exact_match": float(np.mean(right)),
  }


def _batches(evaluator, *, train):
  layout = dataclasses.replace(evaluator.preprocess, train=train)
  for batch in evaluator.batches(layout):
    del batch["_error"]
    yield batch


def _decode(evaluator, model, params, max_decode_len):
  """The ids of every greedy answer."""
  tok = evaluator.preprocess.tokenizer
  answers = []
  for batch in _batches(evaluator, train=False):
    decoded = decode.generate(
      model,
      params,
      batch,
      max_decode_len=max_decode_len,
      eos_id=tok.eos_id,
      pad_id=tok.pad_id,
      prompt_buckets=(),
    )
    tokens, lengths = np.asarray(decoded.tokens), np.asarray(decoded.num_tokens)
    examples = zip(tokens, lengths, strict=True)
    answers += [ids[:n].tolist() for ids, n in examples if n]
  return answers


def _logit_errors(evaluator, model, params, less):
  largest, total, count = 0.0, 0.0, 0
  for batch in _batches(evaluator, train=True):
    mask = batch["mask_loss"][:, 1:].astype(bool) & batch["_mask"][:, None]
    most, mean = jax.device_get(_position_errors(model, params, less, batch))
    largest = max(largest, float(np.where(mask, most, 0).max()))
    total += float(np.where(mask, mean, 0).sum(dtype=np.float64))
    count += int(mask.sum())
  return {"max_error": largest, "mean_error": total / count}


@functools.partial(jax.jit, static_argnums=0)
def _position_errors(model, params, less, batch):
  """Largest and mean difference of logits at each position: float32[B, T]."""

  def features(params):
    text, mask_ar = batch["text"][:, :-1], batch["mask_ar"][:, :-1]
    found, _ = model.apply(
      {"params": params},
      batch["image"],
      text,
      mask_ar,
      input_mask=batch["mask_input"][:, :-1],
      method="compute_features",
    )
    return found

  def logits(params, x):
    head, weights = model.output_layer(params)
    return head(weights, x[None])[0]

  def errors(both):  # one at a time: [T, V] is large enough
    error = jnp.abs(logits(params, both[0]) - logits(less, both[1]))
    return error.max(-1), error.mean(-1)

  return jax.lax.map(errors, (features(params), features(less)))


def main() -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument("ckpt", metavar="CKPT")
  parser.add_argument("--tokenizer", required=True, help="SentencePiece file")
  parser.add_argument("--data", required=True, metavar="X.jsonl")
  parser.add_argument("--kinds", default=",".join(quantization.KINDS))
  parser.add_argument("--limit", type=int, help="the first examples only")
  parser.add_argument("--batch_size", type=int, default=16)
  parser.add_argument(
    "--text_len", type=int, default=64, help="most tokens of prompt and answer"
  )
  parser.add_argument("--max_decode_len", type=int, default=32)
  parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
  parser.add_argument("--json", action="store_true")
  args = vars(parser.parse_args())
  as_json, kinds = args.pop("json"), args.pop("kinds").split(",")
  found = compare(kinds=kinds, **args)
  print(json.dumps(found) if as_json else describe(found))


if __name__ == "__main__":
  command_line.run(main)
