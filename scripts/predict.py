"""Answers prompts, about photos or alone, and draws the boxes of the answers.

    python -m scripts.predict --ckpt runs/mine --tokenizer tokenizer.model \
      --image photos --prompt "detect cat ; dog" --out found.jsonl --draw found

--image names photos, folders of them (and all folders in these), patterns such
as "photos/*.jpg", or one JSONL file. Each line of that names an "image",
relative to the file, or a list of them, as long in every line, which are asked
about together; the prompt is its "prefix", unless --prompt gives one for all,
in which {name} stands for a field of the line: "answer en {question}". --ckpt
is the workdir of a run, or a checkpoint of any other format; no config is
needed. A Gemma alone answers --prompt without --image, or a JSONL file of texts
("prefix", or "messages"). Predictions are appended as they are made; what was
stopped goes on there when started again.
"""

import dataclasses
import os
import sys
from collections.abc import Sequence

if __name__ == "__main__":  # the imports take seconds on a busy machine
  print("starting: importing JAX", file=sys.stderr, flush=True)

import jax
from etils import epath

from paligemma import evals, io, messages, quantization
from paligemma.checkpoints import formats
from paligemma.checkpoints.lora import adapters
from paligemma.checkpoints.training import fingerprint
from paligemma.data import (
  batches,
  photos,
  preprocess,
  sources,
  text_ops,
)
from paligemma.data import image as image_lib
from paligemma.data import tokenizer as tokenizer_lib
from paligemma.evals import (
  annotated,
  answer_objects,
  object_formats,
  predictions,
)
from paligemma.models import paligemma as paligemma_model
from paligemma.training import sharding
from trainers import (
  bundle,
  checks,
  command_line,
  evaluation,
  inputs,
  processes,
  progress,
)
from trainers.tasks import next_token


def predict(
  ckpt: epath.PathLike,
  tokenizer: epath.PathLike,
  image: epath.PathLike | Sequence[epath.PathLike] | None,
  out: epath.PathLike,
  *,
  prompt: str | None = None,
  max_decode_len: int = 64,
  sampler: str = "greedy",
  batch_size: int = 32,
  text_len: int = 64,
  resize: str | None = None,
  dtype: str | None = None,
  quantize: str | None = None,
  adapter: epath.PathLike | None = None,
  grammar: str | None = None,
  on_bad: str = "stop",
  seed: int = 0,
  codec: epath.PathLike | None = None,
  draw: epath.PathLike | None = None,
  format: str | None = None,
  min_score: float = 0.0,
) -> list[str]:
  """Writes a file of predictions, see paligemma/evals/predictions.py.

  Arguments are the options of the command line; `--help` explains them.

  Returns:
    Lines on what was written.

  Raises:
    ValueError: a mistake in the data, the checkpoint, or the file.
  """
  if not 0 <= min_score <= 1:
    raise ValueError(f"--min_score {min_score}: expected a number in [0, 1]")
  write_format = format and object_formats.make(format)
  names = [image] if isinstance(image, str | os.PathLike) else image or []
  sees = has_image_tower(ckpt)
  if not sees and (draw is not None or format):
    raise ValueError(
      f"{ckpt}: holds no image tower; --draw and --format are for boxes in "
      "pictures"
    )
  with progress.stage("finding the data") as details:
    open_source = _open if sees else _open_texts
    source, described = open_source(list(names), prompt, ckpt)
    details.append(f"{len(source):,}")
  if draw is not None:
    annotated.check_folder(draw, names)
  mesh = sharding.make_mesh()
  tok = tokenizer_lib.Tokenizer(tokenizer, plain=not sees)
  add_objects = None
  if sees:
    decode = inputs.mask_decoder(codec)
    name = codec and fingerprint.of(codec)
    add_objects = answer_objects.AddObjects(name, decode)
  with progress.copying("reading the weights") as show:
    model, params = io.load(
      ckpt,
      dtype,
      quantize=quantize,
      llm={"scan": False},  # as decoding reads layers
      mesh=mesh,
      progress=show,
    )
  next_token.check_tokenizer(tok, model, str(tokenizer))
  weights = {"dtype": dtype, "quantize": quantize}
  if adapter is not None:
    model, params = adapters.load_adapter(adapter, model, params)
    weights["adapter"] = fingerprint.of(adapter)
  # Beside the weights: what files state that arrays cannot tell.
  fields = io.model_fields(model)
  weights["model"] = {tower: fields[tower] for tower in model.towers}
  weights["computed_in"] = str(model.llm.dtype)
  evaluator = evals.Generate(
    name="predict",
    source=source,
    preprocess=preprocess.Preprocess(
      tok,
      res=paligemma_model.resolution(model, params) if sees else None,
      text_len=text_len,
      train=False,
      ops=(text_ops.Format(prompt),) if prompt is not None and names else (),
      resize=resize or model.metadata.get("preprocessing", "reference"),
      frames=source.frames() if sees else 0,
    ),
    tokenizer=tok,
    batch_size=batch_size,
    max_decode_len=max_decode_len,
    sampler=sampler,
    metric=None,
    grammar=grammar,
    finish=add_objects,
    on_bad=on_bad,
  )
  (reads,) = inputs.evaluation_datasets(next_token.NextToken(), [evaluator])
  reads = dataclasses.replace(reads, name="predict")
  with progress.stage("checking the data"):
    notes = checks.notes([reads], tok)
  progress.say(notes)
  settings = evaluation.settings(
    evaluator, ckpt, tokenizer, described, seed=seed, **weights
  )
  with progress.bar(str(out)) as show:
    records, _ = evaluator.predict(
      model,
      params,
      mesh,
      rng=jax.random.key(seed),
      path=out,
      settings=_with_bundle(settings, ckpt),
      progress=show,
    )
  lines = _summary(records, sees)
  if jax.process_index() != 0 or not sees:
    return lines
  answers = answer_objects.by_image(records, min_score)
  if write_format:
    lines.append(write_format(answers, os.path.splitext(out)[0]))
  if draw is not None:
    with progress.bar(str(draw)) as show:
      annotated.write(answers, source, draw, progress=show)
    lines.append(f"{draw}: {len(answers)} drawn")
  return lines


def _with_bundle(settings, ckpt):
  """Adds what this program runs with, see trainers/bundle.py."""
  names = ("checkpoint", "tokenizer", "data", "adapter")
  made = bundle.describe(
    {name: settings[name] for name in names if name in settings},
    settings["seed"],
    run=bundle.of_run(ckpt),
  )
  return settings | {"bundles": {made["id"]: made}}


def has_image_tower(ckpt: epath.PathLike) -> bool:
  """Whether a checkpoint is a PaliGemma, or a Gemma alone."""
  names = formats.open(ckpt).leaves
  found = {name.partition("/")[0] for name in names}
  towers = [name for name in ("img", "llm", "txt") if name in found]
  if "llm" not in towers:
    raise ValueError(
      f"{ckpt}: holds {' and '.join(towers)}, expected a decoder (llm), which "
      "answers: a PaliGemma or a Gemma"
    )
  return "img" in towers


def _open_texts(names, prompt, ckpt):
  """Returns the source of prompts without pictures, and what it was made of."""
  if not names and prompt is not None:
    return [{"prefix": prompt, "_where": "--prompt"}], {"prompt": prompt}
  if len(names) == 1 and os.fspath(names[0]).endswith(".jsonl"):
    return sources.TextJsonl(names[0]), {"path": names[0]}
  found = f"--image {os.fspath(names[0])}" if names else "neither"
  raise ValueError(
    f"{ckpt}: is a Gemma without image tower, expected --prompt alone, or "
    f"--image with one JSONL file of texts, found {found}"
  )


def _open(names, prompt, ckpt):
  """Returns the source of what --image names, and what it was made of."""
  if not names:
    raise ValueError(
      f"{ckpt}: is a PaliGemma, which answers about pictures; name them with "
      "--image"
    )
  are_texts = [os.fspath(name).endswith(".jsonl") for name in names]
  if len(names) == 1 and are_texts[0]:
    return sources.Jsonl(names[0]), {"path": names[0]}
  if any(are_texts):
    jsonl = names[are_texts.index(True)]
    raise ValueError(
      f"--image names {jsonl} and {len(names) - 1} more, expected one JSONL"
      " file alone, or photos, folders and patterns"
    )
  source = photos.Photos(names)
  if prompt is None:
    raise ValueError(
      f"{source}: photos have no prompt; give one to all: --prompt 'caption en'"
    )
  return source, {"photos": source.fingerprint()}


def _summary(records, sees):
  """Lines on how many predictions there are, and which examples are bad."""
  bad = [line for line in records if predictions.is_bad(line)]
  found = sum(len(line.get("objects", ())) for line in records)
  malformed = sum("malformed" in line for line in records)
  said = f"predictions: {len(records) - len(bad)}"
  said += f", boxes: {found}" if sees else ""
  if malformed:
    said += f", with malformed boxes, which stay text: {malformed}"
  if bad:
    said += f", bad examples: {len(bad)} ("
    said += messages.listed([line["error"] for line in bad], most=3) + ")"
  return [said]


def main() -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument("--ckpt", required=True)
  parser.add_argument("--tokenizer", required=True, help="SentencePiece file")
  parser.add_argument(
    "--image",
    "--data",
    nargs="+",
    action="extend",
    metavar="PHOTO|FOLDER|PATTERN|X.jsonl",
    help="several, or given several times",
  )
  parser.add_argument("--out", required=True, metavar="Y.jsonl")
  parser.add_argument("--prompt", help='such as "answer en {question}"')
  parser.add_argument(
    "--max_decode_len", type=int, default=64, help="most tokens of an answer"
  )
  parser.add_argument("--sampler", default="greedy", help="as samplers.make")
  parser.add_argument(
    "--batch_size", type=int, default=32, help="images, over all devices"
  )
  parser.add_argument("--text_len", type=int, default=64, help="of a prompt")
  parser.add_argument(
    "--resize",
    help="default: as the checkpoint says, else reference",
    choices=image_lib.PREPROCESSING,
  )
  parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
  parser.add_argument("--quantize", choices=quantization.KINDS)
  parser.add_argument("--adapter", help="LoRA weights, ours or of peft")
  parser.add_argument("--grammar", help="such as 'boxes([\"cat\"])'")
  parser.add_argument(
    "--on_bad",
    choices=batches.ON_BAD,
    default="stop",
    help="an image that cannot be read ends the run, or has no prediction",
  )
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--codec", help="npz of the mask codec, for masks")
  parser.add_argument(
    "--draw", metavar="FOLDER", help="of pictures with boxes, masks and labels"
  )
  parser.add_argument(
    "--format",
    help="also coco, coco(instances='val.json'), yolo, or "
    "yolo(classes='classes.txt')",
  )
  parser.add_argument(
    "--min_score",
    type=float,
    default=0.0,
    help="in [0, 1], of the boxes in pictures and in --format; default 0",
  )
  processes.add_arguments(parser)
  args = vars(parser.parse_args())
  processes.prepare(args)
  lines = predict(**args)
  if jax.process_index() == 0:
    print("\n".join(lines))


if __name__ == "__main__":
  command_line.run(main)
