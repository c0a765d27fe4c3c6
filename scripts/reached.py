"""What runs of scripts.reproduce have reached, beside what was published.

Each folder of a run has

    reproduction.json        what it is of
    evaluations/SPLIT.json   the scores of an evaluation, and its bundle

and the folder around them README.md, a table of all, and reached.json, the rows
for configs/transfers/README.md (python -m scripts.list_transfers --reached).
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Sequence

from paligemma import disk, messages
from scripts import list_transfers
from scripts.submissions import catalog

RUN = "reproduction.json"
EVALUATIONS = "evaluations"
SUBMISSIONS = "submissions"

_HEAD = (
  *("transfer", "model", "split", "metric", "published", "reached"),
  *("95% interval", "difference", "bundle", "note"),
)
_PAGE = """\
# Published scores, and those reached here

In per cent, CIDEr times 100. An interval is that of the bootstrap over the
examples; of a mean of evaluations it runs from the mean of their lower to that
of their upper bounds, which is wide enough even if they fail together. The
bundle says what an evaluation ran with: `predictions/SPLIT.jsonl.settings`.

"""


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of the table; scores in per cent, None where there is none.

  Attributes:
    task: Name of the transfer.
    variant, res: Of the model.
    split, metric: As scores.json names them.
    published, score, low, high: The score, and the bounds of its interval.
    bundle: Id of the evaluation's, of several with commas.
    note: What is to be known of it.
    is_final: Whether it may stand beside the published one.
  """

  task: str
  variant: str
  res: int
  split: str
  metric: str
  published: float | None
  score: float | None = None
  low: float | None = None
  high: float | None = None
  bundle: str = ""
  note: str = ""
  is_final: bool = False


def averaged(split: str, evaluated: Iterable[str]) -> list[str]:
  """The evaluations whose mean the published score of a split is.

  Args:
    split: "test"; or "xgqa, mean of 7 but en", of those that begin with "xgqa_"
      without "xgqa_en".
    evaluated: Names of those there are.

  Returns:
    Their names; none if any is missing.
  """
  start, comma, mean = split.partition(", mean of ")
  if not comma:
    return [x for x in evaluated if x == split]
  left_out = f"{start}_en" if mean.endswith(" but en") else None
  found = [x for x in evaluated if x.startswith(f"{start}_") and x != left_out]
  count = mean.split()[0]
  return found if len(found) == (int(count) if count.isdigit() else 2) else []


def rows(folder: pathlib.Path) -> list[Row]:
  """The lines of a run: published scores, then its other evaluations."""
  run = disk.read_json(folder / RUN)
  evaluations = {
    path.stem: disk.read_json(path)
    for path in sorted((folder / EVALUATIONS).glob("*.json"))
  }
  published = list_transfers.published_scores()
  metrics = dict.fromkeys(
    x["metric"] for x in published if x["task"] == run["task"]
  )
  wanted = {
    (x["split"], x["metric"]): x["score"]
    for x in published
    if all(x[key] == run[key] for key in ("task", "variant", "res"))
  }
  seen = {x for split, _ in wanted for x in averaged(split, evaluations)}
  for split, evaluation in evaluations.items():
    scored = [x for x in metrics if x in evaluation["scores"]]
    if not scored:  # the answers are hidden
      wanted.setdefault((f"{split}, server", next(iter(metrics))), None)
    elif split not in seen:
      wanted |= {(split, x): None for x in scored}
  return [
    _row(run, split, metric, score, evaluations)
    for (split, metric), score in wanted.items()
  ]


def _row(run, split, metric, published, evaluations):
  row = Row(run["task"], run["variant"], run["res"], split, metric, published)
  notes = [f"trial: {run['budget']}"] if run["budget"] else []
  notes += [run["note"]] if run["note"] else []
  names = [
    x
    for x in averaged(split, evaluations)
    if metric in evaluations[x]["scores"]
  ]
  if not names:
    at_server = split.removesuffix(", server")
    form = catalog.FORMATS.get((run["task"], at_server))
    if form is not None and at_server in evaluations:
      notes.append(f"submit {SUBMISSIONS}/{at_server}{form.suffix}")
    return dataclasses.replace(row, note="; ".join(notes))
  used = [evaluations[x] for x in names]
  if any(x["trained_on"] for x in used):
    notes.append("trained on")
  means = {}
  for bound in ("value", "low", "high"):
    values = [x["scores"][metric][bound] for x in used]
    if None not in values:
      means[bound] = 100 * sum(values) / len(values)
  return dataclasses.replace(
    row,
    score=means["value"],
    low=means.get("low"),
    high=means.get("high"),
    bundle=", ".join(dict.fromkeys(x["bundle"] for x in used)),
    note="; ".join(notes),
    is_final=not notes,
  )


def write(workdir: pathlib.Path) -> list[Row]:
  """Writes the page and reached.json of a folder of runs.

  Returns:
    The lines of all its runs.
  """
  found = [
    row
    for file in sorted(workdir.glob(f"*/{RUN}"))
    for row in rows(file.parent)
  ]
  final = [
    {
      key: value
      for key, value in dataclasses.asdict(row).items()
      if key not in ("published", "note", "is_final")
    }
    for row in found
    if row.is_final
  ]
  disk.write(workdir / "reached.json", f"{json.dumps(final, indent=1)}\n")
  head, *lines = cells(found)
  table = [head, ["---"] * len(head), *lines]
  page = "\n".join(f"| {' | '.join(line)} |" for line in table)
  disk.write(workdir / "README.md", f"{_PAGE}{page}\n")
  return found


def cells(lines: Sequence[Row]) -> list[list[str]]:
  """The head of the table, and its lines, as text."""
  return [list(_HEAD), *map(_cells, lines)]


def _cells(row):
  def number(x, form=".2f"):
    return "" if x is None else f"{x:{form}}"

  interval = difference = None
  if row.low is not None:
    interval = f"[{row.low:.2f}, {row.high:.2f}]"
  if None not in (row.score, row.published):
    difference = row.score - row.published
  return [
    row.task,
    f"{row.variant}, {row.res}",
    row.split,
    row.metric,
    number(row.published),
    number(row.score),
    interval or "",
    number(difference, "+.2f"),
    row.bundle,
    row.note,
  ]


def table(lines: Sequence[Row]) -> str:
  """Aligned lines for a terminal."""
  return "\n".join(messages.aligned(cells(lines)))
