"""Writes configs/transfers/README.md: prompts, metrics, scores and commands.

    python -m scripts.list_transfers
    python -m scripts.list_transfers --reached runs/reproduce/reached.json

It reads the configs, the published scores in configs/transfers/scores.json, and
those that runs have reached in configs/transfers/reached.json, to which
--reached adds what scripts.reproduce has written.
"""

import importlib
import inspect
import itertools
import json
import pathlib
import types
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from paligemma import disk
from paligemma.data import text_ops
from trainers import command_line

FOLDER = pathlib.Path(__file__).parents[1] / "configs/transfers"
RESOLUTIONS = (224, 448, 896)
VARIANTS = {
  "paligemma_3b": "PaliGemma 3B",
  "paligemma2_3b": "PaliGemma 2 3B",
  "paligemma2_10b": "PaliGemma 2 10B",
  "paligemma2_28b": "PaliGemma 2 28B",
}

HEAD = """\
# The published transfers

For anyone who trains or compares on a published dataset: prompts, metrics,
hyper-parameters, scores to expect, and commands.

This page is written by `python -m scripts.list_transfers`; change the configs
or `scores.json` and run it again. `python -m scripts.reproduce NAME` trains and
evaluates one, and with `--reached` this page takes over what it has reached,
with the bundle of the evaluation.

What the configs share is in [published.py](published.py), with the arguments
that each of them takes: `res`, `variant`, `init`, `tokenizer`, `tune`, `data`,
`splits` and `final_split`. Examples come from the folder that
[prepare](../../docs/reproduce.md) writes, from TFDS, or with `data=folder` from
your own `train.jsonl` and `val.jsonl`, with the fields named below. The
values are those of the default resolution; other resolutions have their own.

The scores are the published ones, which a faithful run of the official weights
should reach: in per cent, CIDEr times 100. The models behind those of PaliGemma
3B were also trained on the validation data; `final_split=true` does that.
"server" means that the score comes from a test server; the files of predictions
written here can be submitted there. Sources: {sources}.

| transfer | prompt | metric | text_len | duration | learning rate | batch |
| --- | --- | --- | --- | --- | --- | --- |
"""


def published_scores() -> list[dict[str, Any]]:
  """The rows of scores.json."""
  return json.loads((FOLDER / "scores.json").read_text())["scores"]


def reached_scores() -> list[dict[str, Any]]:
  """The rows of reached.json."""
  return json.loads((FOLDER / "reached.json").read_text())


def place(score: Mapping[str, Any]) -> tuple[Any, ...]:
  """What a score is of, published or reached."""
  return tuple(score[x] for x in ("task", "split", "metric", "variant", "res"))


def transfers() -> list[tuple[str, types.ModuleType, ConfigDict]]:
  """(name, module, config) of every transfer with scores."""
  found = []
  for name in sorted({score["task"] for score in published_scores()}):
    module = importlib.import_module(f"configs.transfers.{name}")
    found.append((name, module, module.get_config()))
  return found


def published(
  path: str | None, config: ConfigDict, split: str
) -> dict[str, float]:
  """The published scores of a split, as scores here: {"cider": 1.41}.

  Args:
    path: of the config, as --config names it; that of another file has none.
    config: whose variant and resolution count.
    split: name of the evaluator.
  """
  file = pathlib.PurePath((path or "").partition(":")[0])
  if file.parts[-3:-1] != FOLDER.parts[-2:]:
    return {}
  here = (file.stem, split, config.model.variant, config.res)
  return {
    score["metric"]: score["score"] / 100
    for score in published_scores()
    if tuple(score[x] for x in ("task", "split", "variant", "res")) == here
  }


def prompt(config: ConfigDict) -> str:
  """The prompt as a template of fields."""
  templates = []
  for op in config.train.ops:
    match op:
      case text_ops.Format():
        templates.append(op.prefix)
      case text_ops.Copy(key=key, to="prefix"):
        templates.append(f"{{{key}}}")
      case text_ops.MultipleChoice():
        templates.append("answer en  {question} choose from: {a} \\t {b} ...")
      case text_ops.ScienceQA():
        template = text_ops.SCIENCE_QA_PROMPTS[op.prompt]
        templates.append(template.replace("\n", "\\n"))
  return templates[-1]


def _metric(config):
  return next(
    filter(None, (spec.get("metric") for spec in config.evals.values()))
  )


def duration(config: ConfigDict) -> str:
  """How long it trains: "5 epochs"."""
  for unit in ("epochs", "examples", "steps"):
    if (count := config.get(f"total_{unit}")) is not None:
      return f"{count:,.0f} {unit}"
  raise ValueError("a config without a duration")


def score_table(
  scores: Sequence[Mapping[str, Any]],
  reached: Sequence[Mapping[str, Any]] = (),
) -> str:
  """Rows of what was measured, columns of variants and resolutions, and one of
  what runs have reached."""
  found = {
    tuple(s[key] for key in ("split", "metric", "variant", "res")): s["score"]
    for s in scores
  }
  measured = {key[2:] for key in found}
  columns = [
    c for c in itertools.product(VARIANTS, RESOLUTIONS) if c in measured
  ]
  names = [f"{VARIANTS[variant]}, {res}" for variant, res in columns]
  rows = [("split", "metric", *names, "reached"), ("---",) * (3 + len(names))]
  of_runs = [(s["split"], s["metric"]) for s in reached]
  for row in dict.fromkeys([*(key[:2] for key in found), *of_runs]):
    values = (found.get((*row, *column)) for column in columns)
    runs = (
      f"{VARIANTS.get(s['variant'], s['variant'])}, {s['res']}: "
      f"{s['score']:.2f}{_interval(s)} (`{s['bundle']}`)"
      for s, of in zip(reached, of_runs, strict=True)
      if of == row
    )
    shown = ("" if x is None else f"{x:g}" for x in values)
    rows.append((*row, *shown, "; ".join(runs)))
  return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _interval(score):
  low, high = score["low"], score["high"]
  return "" if low is None else f" [{low:.2f}, {high:.2f}]"


def add_reached(path: pathlib.Path, file: pathlib.Path) -> None:
  """Adds the rows of a file of scripts.reproduce to those of another, in place
  of rows of the same."""
  found = {place(x): x for x in json.loads(file.read_text())}
  found |= {place(x): x for x in json.loads(disk.path(path).read_text())}
  ordered = [found[key] for key in sorted(found)]
  disk.write(file, f"{json.dumps(ordered, indent=1)}\n")


def _section(name, module, config, scores, reached):
  path = f"configs/transfers/{name}.py"
  trains = config.get("total_steps") != 0
  ckpt = f"runs/{name}" if trains else "runs/vqav2"
  commands = [f"python -m scripts.evaluate --config {path} --ckpt {ckpt}"]
  if trains:
    train = f"python -m trainers.train --config {path} --workdir {ckpt}"
    commands.insert(0, train)
  splits = [n for n, spec in config.evals.items() if spec.kind == "generate"]
  if len(splits) > 12:
    splits = [*splits[:3], f"{len(splits) - 3} more"]
  said = (
    f"Prompt `{prompt(config)}`, metric `{_metric(config)}`, evaluated on "
    f"{', '.join(splits)}."
  )
  about = inspect.cleandoc(module.__doc__)
  code = "\n".join(["<!-- needs weights -->", "```bash", *commands, "```"])
  return "\n\n".join(
    [f"## {name}", about, said, score_table(scores, reached), code]
  )


def _document():
  published = json.loads((FOLDER / "scores.json").read_text())
  found = transfers()
  text = HEAD.format(sources="; ".join(published["sources"].values()))
  for name, _, config in found:
    cells = (
      f"[{name}](#{name})",
      f"`{prompt(config)}`",
      f"`{_metric(config)}`",
      config.text_len,
      duration(config),
      f"{config.learning_rate:g}",
      config.batch_size,
    )
    text += f"| {' | '.join(map(str, cells))} |\n"
  for name, module, config in found:
    scores, reached = (
      [s for s in rows if s["task"] == name]
      for rows in (published["scores"], reached_scores())
    )
    text += f"\n{_section(name, module, config, scores, reached)}\n"
  return text


def main() -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument("--out", default=FOLDER / "README.md", type=pathlib.Path)
  parser.add_argument(
    "--reached",
    metavar="FILE",
    help="of scripts.reproduce, to add",
  )
  args = parser.parse_args()
  if args.reached:
    add_reached(args.reached, FOLDER / "reached.json")
  args.out.write_text(_document(), encoding="utf-8")
  print(f"wrote {args.out}")


if __name__ == "__main__":
  command_line.run(main)
