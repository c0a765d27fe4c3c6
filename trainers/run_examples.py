"""The answers of a run as HTML: over time, the worst, and tables of errors."""

import collections
from collections.abc import Callable, Mapping, Sequence

from paligemma import messages
from paligemma.evals import judged, predictions
from paligemma.metrics import detection
from trainers import run_answers
from trainers.run_answers import Scored
from trainers.run_files import Evaluation
from trainers.run_html import dot, escaped, number, table, url

_LEGEND = (
  "A predicted box is green if it overlaps with a true one of the same label "
  "(IoU 0.5 or more), else red; true ones are white, and red if missed. A mask "
  "has the colour of its box."
)


def section(
  evaluator: str,
  names: Sequence[str],
  own: Mapping[int, Evaluation],
  score: Callable[[Evaluation, int], Scored],
) -> str:
  """Returns the predictions of an evaluator: over time, the worst, and tables.

  Args:
    evaluator: its name.
    names: of all runs.
    own: the evaluator in those runs that have it, by the number of the run.
    score: as run_answers.score, of each step once.
  """
  found = {i: score(e, e.steps[-1]) for i, e in own.items()}
  last = {i: scored for i, scored in found.items() if scored.records}
  if not last:
    if not any(e.predicts for e in own.values()):
      return ""
    problem = next(iter(found.values())).problem
    return (
      f"<h2>{escaped(evaluator)}</h2>"
      f'<p class="bad">No predictions to show: {escaped(problem)}</p>\n'
    )
  evaluation = own[min(last)]
  problems = []
  if len(last) > 1:
    gallery = {names[i]: scored.records for i, scored in last.items()}
    about = "The same examples at the last evaluation of each run."
  else:
    steps = evaluation.steps
    chosen = sorted({steps[0], steps[len(steps) // 2], steps[-1]})
    found = {f"step {step}": score(evaluation, step) for step in chosen}
    problems = [x.problem for x in found.values() if not x.records]
    gallery = {name: x.records for name, x in found.items() if x.records}
    about = "The same examples at the first, a middle and the last evaluation."
  shown = [
    _example(evaluation, records) for records in run_answers.in_common(gallery)
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


def _example(evaluation, records, note=""):
  """A card with an example and its answers, {heading: record}."""
  first = next(iter(records.values()))
  truth = " | ".join(run_answers.true_answers(evaluation, first))
  truth = f"<b>truth</b> {escaped(messages.shown(truth))}"
  drawn = {}
  try:
    picture, drawn = run_answers.draw(evaluation, records)
    shown = [_figure(f'<img alt="" src="{url(picture)}">', truth)]
  except ValueError as error:
    problem = f"no picture: {escaped(error)}"
    shown = [_figure(f'<div class="gone faint">{problem}</div>', truth)]
  texts = ""
  for heading, record in records.items():
    kind, sign = {True: ("good", "✓ "), False: ("bad", "✗ "), None: ("", "")}[
      run_answers.is_right(evaluation, record)
    ]
    answer = escaped(messages.shown(judged.shorten(record["prediction"])))
    text = (
      f"<b>{escaped(heading)}</b> "
      f'<span class="{kind}">{sign}{answer or "(empty)"}</span>'
    )
    if heading in drawn:
      image = f'<img alt="" src="{url(drawn[heading])}">'
      shown.append(_figure(image, text))
    else:
      texts += f"<p>{text}</p>"
  prompt = escaped(messages.shown(str(first.get("prefix", ""))))
  note = f" ({escaped(note)})" if note else ""
  return (
    f'<div class="card"><p><b>{prompt}</b>{note} '
    f'<span class="where">{escaped(predictions.where(first))}</span></p>'
    f'<div class="strip">{"".join(shown)}<div>{texts}</div></div></div>\n'
  )


def _figure(inside, caption):
  return f"<figure>{inside}<figcaption>{caption}</figcaption></figure>"


def _errors(scored):
  found = run_answers.worst(scored)
  if not found:
    return ""
  cards = "".join(
    _example(scored.evaluation, {"answer": record}, note)
    for record, note in found
  )
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
  for truth in filter(totals.get, labels):
    cells = [escaped(truth or "(empty)")]
    for found in labels:
      count = counts.get((truth, found), 0)
      heat = 0.75 * count / totals[truth]
      right = "diagonal" if truth == found and truth not in special else ""
      cells.append(
        f'<div class="{right}" style="background: rgba(var(--heat), '
        f'{heat:.2f})">{count or ""}</div>'
      )
    rows.append(cells)
  heads = ("truth", *(escaped(x or "(empty)") for x in labels))
  return (
    '<h3>Confusion</h3><p class="faint">Rows: the truth. Columns: what is '
    "predicted. Shades are shares of a row.</p>"
    + table(heads, rows, kind="number")
  )


def _by_label(scored):
  """Average precision of boxes by their label, the lowest AP50 first."""
  if not isinstance(scored.metric, detection.Detection) or not scored.rows:
    return ""
  true, found = (
    collections.Counter(
      box["label"] for row in scored.rows for box in getattr(row, name)
    )
    for name in ("truth", "found")
  )
  by_label = detection.average_precision_by_label(scored.rows)
  names = ("AP50", "AP")
  rows = []
  for label, scores in sorted(
    by_label.items(), key=lambda item: (item[1].get("AP50", 0.0), item[0])
  ):
    shown = (number(scores[x]) if x in scores else "" for x in names)
    rows.append((escaped(label), str(true[label]), str(found[label]), *shown))
  if not rows:
    return ""
  heads = ("label", "true boxes", "predicted boxes", *names)
  return "<h3>Average precision by label</h3>" + table(
    heads, rows, kind="number"
  )
