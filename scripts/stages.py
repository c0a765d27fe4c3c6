"""Trains all stages from nothing, small, and prints what each of them brought.

    python -m scripts.make_stages data/stages
    python -m scripts.make_digits data/digits
    python -m scripts.stages runs/stages

A SigLIP and a Gemma of 3 layers (stage 0) are joined and pre-trained at 56
pixels (stage 1), then at 112 (stage 2), and transferred to scans of digits
(stage 3). Beside it the same transfer, of as many steps, without stage 0,
without stage 1, and from nothing. Stage 0 is one training each, all others are
three, with different seeds. A run that is complete is not run again.
"""

import concurrent.futures
import contextlib
import json
import multiprocessing
import os
import pathlib
import resource
import threading
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from paligemma import messages
from trainers import command_line, compilation_cache, train

WIDTH, DEPTH = 64, 3
SEEDS = (0, 1, 2)
EXAMPLES = dict(stage1=10_000, stage2=3000)
SHARED = (
  "dtype=float32,tokenizer=paligemma/assets/tiny_tokenizer.model,batch_size=16"
)
AT_56 = "res=56,tasks=caption+answer"
AT_112 = "res=112,tasks=caption+answer+ocr"
TEMPLATES = tuple(
  f"the digit {{}} in {colours}"
  for colours in ("white on black", "red on blue")
)

# name of a run -> its last scores
Scores = dict[str, dict[str, float]]


def small(config: ConfigDict, *, learning_rate: float, seed: int) -> ConfigDict:
  """A config with towers of few layers, that is evaluated at its end."""
  tower = dict(
    width=WIDTH,
    depth=DEPTH,
    mlp_dim=4 * WIDTH,
    num_heads=4,
    remat_policy="none",
  )
  heads = dict(num_kv_heads=1, head_dim=WIDTH // 4)
  for name, more in (
    ("img", {}),
    ("txt", {"num_classes": WIDTH}),
    ("llm", heads),
  ):
    if name in config.model:
      config.model[name].update(**tower, **more)
  config.learning_rate = learning_rate
  config.seed = seed
  config.log_steps = 100
  config.checkpoint_percent = 1.0
  config.writers = ("jsonl",)
  for spec in config.evals.values():
    for unit in ("steps", "examples", "epochs", "percent"):
      spec[f"every_{unit}"] = 0 if unit == "steps" else None
    spec.batch_size = 100
    if spec.kind == "generate":
      spec.max_decode_len = 5
  return config


def _load(stage: str, argument: str) -> ConfigDict:
  return command_line.load_config(f"configs/stages/{stage}.py:{argument}")


def siglip(data: pathlib.Path) -> ConfigDict:
  """Stage 0 of the image tower."""
  config = _load(
    "stage0_siglip",
    f"{SHARED},variant=siglip_tiny,batch_size=32,epochs=2,loss=softmax,"
    f"train={data}/caption.jsonl",
  )
  config.evals.zero_shot = dict(
    kind="zero_shot",
    source=dict(kind="jsonl", path=f"{data}/val_answer.jsonl"),
    class_names=tuple(map(str, range(10))),
    templates=TEMPLATES,
  )
  config.evals.retrieval = dict(
    kind="retrieval",
    source=dict(kind="jsonl", path=f"{data}/val_caption.jsonl"),
  )
  return small(config, learning_rate=2e-3, seed=0)


def gemma(data: pathlib.Path) -> ConfigDict:
  """Stage 0 of the decoder."""
  config = _load(
    "stage0_gemma",
    f"{SHARED},variant=gemma_nano,text_len=64,epochs=1,train={data}/text.jsonl,"
    f"val={data}/val_text.jsonl",
  )
  return small(config, learning_rate=2e-3, seed=0)


def pretraining(
  stage: str, seed: int, data: pathlib.Path, argument: str
) -> ConfigDict:
  """Stage 1 or 2."""
  config = _load(
    stage,
    f"{SHARED},variant=paligemma_tiny,text_len=20,data={data},timescale=8000,"
    f"{argument}",
  )
  return small(config, learning_rate=5e-4, seed=seed)


def transfer(
  init: object, seed: int, digits: pathlib.Path, res: int
) -> ConfigDict:
  """Stage 3, always of the same steps."""
  config = _load(
    "stage3",
    f"{SHARED},variant=paligemma_tiny,res={res},text_len=16,epochs=1,init=,"
    f"train={digits}/train.jsonl,val={digits}/test.jsonl",
  )
  config.init = init
  return small(config, learning_rate=1e-3, seed=seed)


def run(config: ConfigDict, folder: pathlib.Path) -> dict[str, float]:
  """Trains in a folder, with a log.txt; returns the last scores."""
  folder.mkdir(parents=True, exist_ok=True)
  before = resource.getrusage(resource.RUSAGE_SELF)
  with (
    (folder / "log.txt").open("a") as log,
    contextlib.redirect_stdout(log),
    contextlib.redirect_stderr(log),
  ):
    if not train.train(config, folder):
      raise ValueError(f"{folder}: was asked to stop; start again to go on")
  after = resource.getrusage(resource.RUSAGE_SELF)
  seconds = sum(after[:2]) - sum(before[:2])
  scores = {}
  for line in (folder / "metrics.jsonl").read_text().splitlines():
    scores |= {n: x for n, x in json.loads(line).items() if "/" in n}
  print(f"{folder.name}: {seconds:.0f} s of processor time", flush=True)
  return scores


def stage0(out: pathlib.Path, data: pathlib.Path, name: str) -> Scores:
  """One of the two trainings of stage 0."""
  return {name: run({"siglip": siglip, "gemma": gemma}[name](data), out / name)}


def with_stage0(
  out: pathlib.Path, data: pathlib.Path, digits: pathlib.Path, seed: int
) -> Scores:
  """Stages 1 and 2, and the transfer from before, between and behind them."""
  towers = {"img": str(out / "siglip"), "llm": str(out / "gemma")}
  first, second = out / f"stage1_{seed}", out / f"stage2_{seed}"
  argument = f"img={towers['img']},llm={towers['llm']},{AT_56}"
  examples, more = EXAMPLES["stage1"], EXAMPLES["stage2"]
  return {
    "stage 1": run(
      pretraining("stage1", seed, data, f"{argument},examples={examples}"),
      first,
    ),
    "stage 2": run(
      pretraining(
        "stage2_448",
        seed,
        data,
        f"init={first},{AT_112},examples={more},seen={examples}",
      ),
      second,
    ),
    **{
      name: run(transfer(init, seed, digits, res), out / f"{folder}_{seed}")
      for name, folder, init, res in (
        ("0, 1, 2, 3 at 112", "from_stage2", str(second), 112),
        ("0, 1, 3 at 56", "from_stage1", str(first), 56),
        ("0, 3 at 56", "from_stage0", towers, 56),
      )
    },
  }


def without_stage0(
  out: pathlib.Path, data: pathlib.Path, digits: pathlib.Path, seed: int
) -> Scores:
  """Stage 1 from random weights, and the transfer behind and before it."""
  first = out / f"stage1_alone_{seed}"
  argument = f"img=,llm=,{AT_56},examples={EXAMPLES['stage1']}"
  return {
    "stage 1 alone": run(pretraining("stage1", seed, data, argument), first),
    **{
      name: run(transfer(init, seed, digits, 56), out / f"{folder}_{seed}")
      for name, folder, init in (
        ("1, 3 at 56", "from_stage1_alone", str(first)),
        ("3 at 56", "from_nothing", ""),
      )
    },
  }


def table(found: dict[str, list[dict[str, float]]]) -> str:
  """The scores of all runs, of several seeds as mean (least to most)."""

  def cell(name, score):
    values = [scores[score] for scores in found[name] if score in scores]
    if not values:
      return "-"
    shown = f"{np.mean(values):.3f}"
    if len(values) > 1:
      shown += f" ({min(values):.3f} to {max(values):.3f})"
    return shown

  columns = {
    "zero-shot": "zero_shot/accuracy",
    "recall@1": "retrieval/image_to_text_recall@1",
    "perplexity": "pplx/perplexity",
    "exact match": "val/exact_match",
  }
  rows = [("stages", *columns)]
  rows += [(name, *(cell(name, x) for x in columns.values())) for name in found]
  return "\n".join(messages.aligned(rows))


def pool(size: int) -> concurrent.futures.ProcessPoolExecutor:
  """Processes that end with this one, also where it is killed."""
  context = multiprocessing.get_context("spawn")
  return concurrent.futures.ProcessPoolExecutor(
    size, context, initializer=_end_with_parent
  )


def _end_with_parent():
  def watch():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def _worker(function: Callable[..., Scores], *arguments: object) -> Scores:
  compilation_cache.configure(compilation_cache.FOLDER)
  return function(*arguments)


def main() -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument("out", type=pathlib.Path, help="the folder of the runs")
  parser.add_argument("--data", type=pathlib.Path, default="data/stages")
  parser.add_argument("--digits", type=pathlib.Path, default="data/digits")
  args = parser.parse_args()
  inputs = args.out, args.data, args.digits
  found = {}
  with pool(2) as workers:
    towers = [
      workers.submit(_worker, stage0, args.out, args.data, x)
      for x in ("siglip", "gemma")
    ]
    for one in towers:
      found |= {name: [scores] for name, scores in one.result().items()}
    chains = [
      workers.submit(_worker, function, *inputs, seed)
      for function in (with_stage0, without_stage0)
      for seed in SEEDS
    ]
    for chain in chains:
      for name, scores in chain.result().items():
        found.setdefault(name, []).append(scores)
  print(table(found))


if __name__ == "__main__":
  command_line.run(main)
