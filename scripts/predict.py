"""Answers a prompt about every image of a JSONL file; needs no config.

    python -m scripts.predict --ckpt runs/mine --tokenizer tokenizer.model \
      --data images.jsonl --prompt "caption en" --out captions.jsonl

Each line of --data names an "image", relative to the file, or a list of them,
as long in every line, which are asked about together. The prompt is its
"prefix", unless --prompt gives one for all, in which {name} stands for a field
of the line: "answer en {question}". --ckpt is the workdir of a run, or a
checkpoint of any other format. Predictions are appended as they are made;
whoever is stopped goes on there when started again.
"""

import dataclasses

import jax
from etils import epath

from paligemma import evals, io, quantization
from paligemma.checkpoints.lora import adapters
from paligemma.checkpoints.training import fingerprint
from paligemma.data import batches, image, preprocess, sources, text_ops
from paligemma.data import tokenizer as tokenizer_lib
from paligemma.evals import predictions
from paligemma.models import paligemma as paligemma_model
from paligemma.training import sharding
from trainers import (
  checks,
  command_line,
  compilation_cache,
  datasets,
  evaluation,
  gpu_memory,
  processes,
  progress,
)


def predict(
  ckpt: epath.PathLike,
  tokenizer: epath.PathLike,
  data: epath.PathLike,
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
) -> tuple[int, int]:
  """Writes a file of predictions, see paligemma/evals/predictions.py.

  Arguments are the options of the command line; `--help` explains them.

  Returns:
    The numbers of predictions and of bad examples in the file.
  """
  mesh = sharding.make_mesh()
  tok = tokenizer_lib.Tokenizer(tokenizer)
  source = sources.Jsonl(data)
  model, params = io.load(ckpt, dtype, quantize=quantize, mesh=mesh)
  weights = {"dtype": dtype, "quantize": quantize}
  if adapter is not None:
    model, params = adapters.load_adapter(adapter, model, params)
    weights["adapter"] = fingerprint.of(adapter)
  # Beside the weights: what files state that arrays cannot tell.
  fields = io.model_fields(model)
  weights["model"] = {tower: fields[tower] for tower in ("img", "llm")}
  weights["computed_in"] = str(model.llm.dtype)
  if model.img is None:
    raise ValueError(f"{ckpt}: has no image tower, expected a whole PaliGemma")
  if tok.vocab_size > model.llm.vocab_size:
    raise ValueError(
      f"{tokenizer}: {tok.vocab_size} ids, but the model has only "
      f"{model.llm.vocab_size} rows; give the tokenizer of the checkpoint"
    )
  evaluator = evals.Generate(
    name="predict",
    source=source,
    preprocess=preprocess.Preprocess(
      tok,
      res=paligemma_model.resolution(model, params),
      text_len=text_len,
      train=False,
      ops=() if prompt is None else (text_ops.Format(prompt),),
      resize=resize or model.metadata.get("preprocessing", "reference"),
      frames=source.frames(),
    ),
    tokenizer=tok,
    batch_size=batch_size,
    max_decode_len=max_decode_len,
    sampler=sampler,
    metric=None,
    grammar=grammar,
    on_bad=on_bad,
  )
  (reads,) = datasets.evaluation_datasets([(evaluator, None)])
  reads = dataclasses.replace(reads, name="predict")
  progress.say(checks.notes([reads], tok))
  records, _ = evaluator.predict(
    model,
    params,
    mesh,
    rng=jax.random.key(seed),
    path=out,
    settings=evaluation.settings(
      evaluator, ckpt, tokenizer, {"path": data}, seed=seed, **weights
    ),
    progress=progress.bar(str(out)),
  )
  bad = sum(map(predictions.is_bad, records))
  return len(records) - bad, bad


def main() -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument("--ckpt", required=True)
  parser.add_argument("--tokenizer", required=True, help="SentencePiece file")
  parser.add_argument("--data", required=True, metavar="X.jsonl")
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
    choices=image.PREPROCESSING,
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
  compilation_cache.add_argument(parser)
  command_line.add_switch(
    parser, "distributed", processes.expected(), "several processes"
  )
  args = vars(parser.parse_args())
  gpu_memory.configure()
  compilation_cache.configure(args.pop("compilation_cache"))
  processes.start(args.pop("distributed"))
  count, bad = predict(**args)
  if jax.process_index() == 0:
    print(f"{count} predictions" + f", {bad} bad examples" * bool(bad))


if __name__ == "__main__":
  command_line.run(main)
