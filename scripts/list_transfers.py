"""Writes configs/transfers/README.md: prompts, metrics, scores and commands.

    python -m scripts.list_transfers

It reads the configs, and the published scores in configs/transfers/scores.json.
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
or `scores.json` and run it again.

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


def transfers() -> list[tuple[str, types.ModuleType, ConfigDict]]:
  """(name, module, config) of every transfer with scores."""
  scores = json.loads((FOLDER / "scores.json").read_text())["scores"]
  found = []
  for name in sorted({score["task"] for score in scores}):
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
  place = (file.stem, split, config.model.variant, config.res)
  return {
    score["metric"]: score["score"] / 100
    for score in json.loads((FOLDER / "scores.json").read_text())["scores"]
    if tuple(score[x] for x in ("task", "split", "variant", "res")) == place
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


def score_table(scores: Sequence[Mapping[str, Any]]) -> str:
  """Rows of what was measured, columns of variants and resolutions."""
  found = {
    tuple(s[key] for key in ("split", "metric", "variant", "res")): s["score"]
    for s in scores
  }
  measured = {key[2:] for key in found}
  columns = [
    c for c in itertools.product(VARIANTS, RESOLUTIONS) if c in measured
  ]
  names = [f"{VARIANTS[variant]}, {res}" for variant, res in columns]
  rows = [("split", "metric", *names), ("---",) * (2 + len(names))]
  for row in dict.fromkeys(key[:2] for key in found):
    values = (found.get((*row, *column)) for column in columns)
    rows.append((*row, *("" if x is None else f"{x:g}" for x in values)))
  return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _section(name, module, config, scores):
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
  return "\n\n".join([f"## {name}", about, said, score_table(scores), code])


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
    scores = [s for s in published["scores"] if s["task"] == name]
    text += f"\n{_section(name, module, config, scores)}\n"
  return text


def main() -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument("--out", default=FOLDER / "README.md", type=pathlib.Path)
  args = parser.parse_args()
  args.out.write_text(_document(), encoding="utf-8")
  print(f"wrote {args.out}")


if __name__ == "__main__":
  command_line.run(main)
