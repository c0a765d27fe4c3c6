"""The answers of a run as HTML: over time, the worst, and tables of errors."""

from collections.abc import Mapping, Sequence
from typing import Any

from paligemma import messages
from paligemma.metrics import bootstrap
from trainers import run_answers
from trainers.run_answers import Scored
from trainers.run_files import Evaluation
from trainers.run_html import dot, escaped, number, table

_LEGEND = (
  "A predicted box is green if it overlaps with a true one of the same label "
  "(IoU 0.5 or more), else red; true ones are white, and red if missed. A mask "
  "has the colour of its box."
)


class Reader:
  """Reads and scores predictions, those of each step once."""

  def __init__(self, resamples: int):
    self.resamples = resamples
    self._scored, self._estimates = {}, {}

  def scored(self, evaluation: Evaluation, step: int) -> Scored | str:
    """Predictions with scores, or why there are none."""
    key = str(evaluation.folder), step
    if key not in self._scored:
      try:
        self._scored[key] = run_answers.score(evaluation, step)
      except (OSError, ValueError) as error:
        self._scored[key] = messages.one_line(error)
    return self._scored[key]

  def metric(self, evaluation: Evaluation) -> Any:
    """That of the last step, None if it is not known."""
    return getattr(
      self.scored(evaluation, evaluation.steps[-1]), "metric", None
    )

  def estimates(
    self, evaluation: Evaluation, step: int
  ) -> Mapping[str, bootstrap.Estimate]:
    """Scores of a step with their intervals, as far as they can be had."""
    key = str(evaluation.folder), step
    if key not in self._estimates:
      scored = self.scored(evaluation, step)
      self._estimates[key] = (
        {} if isinstance(scored, str) else scored.estimate(self.resamples)
      )
    return self._estimates[key]


def section(
  evaluator: str,
  names: Sequence[str],
  own: Mapping[int, Evaluation],
  reader: Reader,
) -> str:
  """Returns the predictions of an evaluator: over time, the worst, and tables.

  Args:
    evaluator: its name.
    names: of all runs.
    own: the evaluator in those runs that have it, by the number of the run.
    reader: of the predictions.
  """
  last = {i: reader.scored(e, e.steps[-1]) for i, e in own.items()}
  last = {i: x for i, x in last.items() if not isinstance(x, str)}
  if not last:
    if any(e.predicts for e in own.values()):
      problem = next(reader.scored(e, e.steps[-1]) for e in own.values())
      return (
        f"<h2>{escaped(evaluator)}</h2>"
        f'<p class="bad">No predictions to show: {escaped(problem)}</p>\n'
      )
    return ""
  evaluation = own[min(last)]
  problems = []
  if len(last) > 1:
    gallery = {names[i]: scored.records for i, scored in last.items()}
    about = "The same examples at the last evaluation of each run."
  else:
    steps = evaluation.steps
    chosen = sorted({steps[0], steps[len(steps) // 2], steps[-1]})
    found = {step: reader.scored(evaluation, step) for step in chosen}
    problems = [x for x in found.values() if isinstance(x, str)]
    gallery = {
      f"step {step}": scored.records
      for step, scored in found.items()
      if not isinstance(scored, str)
    }
    about = "The same examples at the first, a middle and the last evaluation."
  shown = [
    _example(run_answers.show(evaluation, records))
    for records in run_answers.in_common(gallery)
  ]
  if not shown:
    problems.append("the runs have no example in common")
  parts = [
    f"<h2>{escaped(evaluator)}</h2><h3>Predictions</h3>"
    f'<p class="faint">{about} {_LEGEND}</p>',
    *(f'<p class="bad">{escaped(problem)}</p>' for problem in problems),
    f'<div class="examples">{"".join(shown)}</div>',
  ]
  for i, scored in last.items():
    step = own[i].steps[-1]
    inner = _errors(scored) + _confusion(scored) + _by_label(scored)
    if inner and len(names) > 1:
      inner = (
        f"<details><summary>{dot(i)}{escaped(names[i])}: errors of step {step}"
        f"</summary>{inner}</details>"
      )
    parts.append(inner)
  return "".join(parts) + "\n"


def _example(example):
  truth = f"<b>truth</b> {escaped(example.truth)}"
  shown = [_picture(example.picture, example.problem, truth)]
  texts = []
  for answer in example.answers:
    mark = {True: "good", False: "bad", None: ""}[answer.is_right]
    sign = {True: "✓ ", False: "✗ ", None: ""}[answer.is_right]
    text = (
      f"<b>{escaped(answer.heading)}</b> "
      f'<span class="{mark}">{sign}{escaped(answer.text) or "(empty)"}</span>'
    )
    if answer.picture is None:
      texts.append(f"<p>{text}</p>")
    else:
      shown.append(_picture(answer.picture, "", text))
  note = f" ({escaped(example.note)})" if example.note else ""
  return (
    f'<div class="card"><p><b>{escaped(example.prompt)}</b>{note} '
    f'<span class="where">{escaped(example.where)}</span></p>'
    f'<div class="strip">{"".join(shown)}<div>{"".join(texts)}</div></div>'
    "</div>\n"
  )


def _picture(url, problem, caption):
  inside = f'<img alt="" src="{url}">'
  if url is None:
    inside = f'<div class="gone faint">no picture: {escaped(problem)}</div>'
  return f"<figure>{inside}<figcaption>{caption}</figcaption></figure>"


def _errors(scored):
  found = run_answers.worst(scored)
  if not found:
    return ""
  cards = "".join(map(_example, found))
  return (
    '<h3>Worst errors</h3><p class="faint">The lowest scores first, of equal '
    "ones those of which the model was the surest.</p>"
    f'<div class="examples">{cards}</div>'
  )


def _confusion(scored):
  counts = run_answers.confusion(scored)
  if not counts:
    return ""
  special = (run_answers.OTHERS, run_answers.NOTHING)
  labels = sorted({x for pair in counts for x in pair} - set(special))
  labels += [x for x in special if any(x in pair for pair in counts)]
  totals = {x: sum(n for (t, _), n in counts.items() if t == x) for x in labels}
  rows = []
  for truth in labels:
    if not totals[truth]:
      continue
    cells = [f"<th>{escaped(truth or '(empty)')}</th>"]
    for found in labels:
      count = counts.get((truth, found), 0)
      heat = 0.75 * count / totals[truth]
      kind = (
        ' class="diagonal"' if truth == found and truth not in special else ""
      )
      cells.append(
        f'<td{kind} style="background: rgba(var(--heat), {heat:.2f})">'
        f"{count or ''}</td>"
      )
    rows.append(f"<tr>{''.join(cells)}</tr>")
  heads = "".join(f"<th>{escaped(x or '(empty)')}</th>" for x in labels)
  return (
    '<h3>Confusion</h3><p class="faint">Rows: the truth. Columns: what is '
    "predicted. Shades are shares of a row.</p>"
    f'<div class="scroll"><table class="confusion"><thead><tr><th>truth</th>'
    f"{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
  )


def _by_label(scored):
  rows = [
    (
      escaped(label),
      str(true),
      str(found),
      *(number(scores[x]) if x in scores else "" for x in ("AP50", "AP")),
    )
    for label, true, found, scores in run_answers.precision_by_label(scored)
  ]
  if not rows:
    return ""
  headings = ("label", "true boxes", "predicted boxes", "AP50", "AP")
  return "<h3>Average precision by label</h3>" + table(
    headings, rows, kind="number"
  )
