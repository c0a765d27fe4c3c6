"""One HTML page about one run or several, which needs no other file.

It holds no script and asks for nothing on any network: curves are SVG, pictures
are in the page, and every number of a curve is in a table too.
"""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from paligemma import disk, messages
from paligemma.metrics import bootstrap
from trainers import progress, run_answers, run_curves, run_files
from trainers.best import EMA
from trainers.run_answers import Scored
from trainers.run_files import Evaluation, Run

RESAMPLES = 200  # of scores that are not means
_NUMBERS = 24  # rows of the table of what is measured of steps
_TIME = "seconds_per_step"
# Curves before and after those of the scores that decide.
_FIRST = ("loss", "learning_rate")
_LAST = ("peak_memory_gib", "examples_per_second", _TIME)
# What says nothing about how a run went unless it is above 0, or is constant.
_COUNTS = ("skipped", "truncated", "empty_batches")

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c1e21;
  --faint: #667; --line: #d5d9de; --card: #f6f7f9; --good: #15803d;
  --bad: #c02626; --heat: 37, 99, 235; }
@media (prefers-color-scheme: dark) { :root { --paper: #14161a; --ink: #e4e6ea;
  --faint: #9aa3af; --line: #363b43; --card: #1d2025; --good: #4ade80;
  --bad: #ff7b72; --heat: 96, 150, 255; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 78rem; color: var(--ink);
  background: var(--paper); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0.4rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 0.6rem; padding-top: 0.8rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 0.4rem; }
p { margin: 0.4rem 0; }
.faint, figcaption, .where { color: var(--faint); font-size: 0.87em; }
.bad { color: var(--bad); } .good { color: var(--good); }
.runs, .curves, .examples { display: grid; gap: 0.8rem;
  grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); }
.examples { grid-template-columns: repeat(auto-fill,
  minmax(min(28rem, 100%), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line);
  border-radius: 6px; padding: 0.7rem 0.9rem; min-width: 0;
  overflow-wrap: anywhere; }
.card h3 { margin: 0 0 0.2rem; }
.dot { display: inline-block; width: 0.8em; height: 0.8em; border-radius: 50%;
  margin-right: 0.4em; }
.bar { height: 6px; border-radius: 3px; background: var(--line);
  margin: 0.4rem 0; overflow: hidden; }
.bar i { display: block; height: 100%; }
figure { margin: 0; min-width: 0; }
figcaption b { color: var(--ink); }
svg { width: 100%; height: auto; display: block; }
svg * { stroke-linejoin: round; }
svg text { font-family: inherit !important; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9em;
  font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.7rem 0.2rem 0; text-align: left;
  vertical-align: top; }
th { font-weight: 600; } tbody tr { border-top: 1px solid var(--line); }
td.number, th.number { text-align: right; }
.confusion td, .confusion th { padding: 0.25rem 0.45rem; text-align: right; }
.confusion td.diagonal { outline: 1px solid var(--faint);
  outline-offset: -1px; }
.value { overflow-wrap: anywhere; min-width: 8rem; }
.strip { display: grid; gap: 0.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(12rem, 46%), 1fr)); }
img { width: 100%; height: auto; display: block; border-radius: 3px; }
.gone { border: 1px dashed var(--line); border-radius: 3px; padding: 1.4rem
  0.6rem; text-align: center; }
details { margin: 0.7rem 0; } summary { cursor: pointer; }
@media print { .card, figure { break-inside: avoid; } }
"""


def write_at_end(folder: epath.PathLike) -> None:
  """Writes the report of a run that ends; what goes wrong is one line.

  Intervals that take long are left to the command, see Scored.estimate.
  """
  if jax.process_index() != 0:
    return
  try:
    path, _ = write([folder], resamples=0)
    progress.say([f"wrote {path}"])
  except Exception as error:  # the run itself has ended well
    progress.say([f"warning: no report.html: {messages.one_line(error)}"])


def write(
  folders: Sequence[epath.PathLike],
  out: epath.PathLike | None = None,
  *,
  resamples: int = RESAMPLES,
) -> tuple[epath.Path, list[str]]:
  """Writes the report of runs, completely or not at all.

  Args:
    folders: of at least one run.
    out: the HTML file. Default: report.html in the folder of the first run.
    resamples: for intervals of scores that are not means; 0 for none.

  Returns:
    The file, and lines for a terminal: how far each run came, and its scores.

  Raises:
    ValueError, OSError: a folder is not that of a run.
  """
  runs = list(map(run_files.read, folders))
  path = epath.Path(folders[0]) / "report.html" if out is None else out
  text, lines = _page(runs, _names(runs), resamples)
  disk.write(path, text.encode(errors="replace"))
  return epath.Path(path), lines


def _names(runs: Sequence[Run]) -> list[str]:
  """Names that tell the runs apart: of their folders, or their paths."""
  names = [run.name for run in runs]
  if len(set(names)) < len(names):
    names = [str(run.folder) for run in runs]
  return names


def _page(runs, names, resamples):
  """The page, and the lines for a terminal."""
  evaluated = {}  # evaluator -> number of the run -> Evaluation
  for i, run in enumerate(runs):
    for name, evaluation in run.evaluations.items():
      evaluated.setdefault(name, {})[i] = evaluation
  reader = _Reader(resamples)
  lines = []
  for run, name in zip(runs, names, strict=True):
    lines.append(f"{name}: {run.status}")
    lines += [f"{name}: {problem}" for problem in run.problems]
  table, scores, main_scores = _scores(runs, names, evaluated, reader)
  sections = [
    _overview(runs, names),
    table,
    _curves(runs, names, main_scores),
    _numbers(runs, names),
    *(_answers(x, names, own, reader) for x, own in evaluated.items()),
    _configs(runs, names),
  ]
  title = f"Report of {', '.join(names)}"
  return (
    '<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>{_text(title)}</title>\n<style>{_STYLE}</style></head>\n"
    f"<body>\n<h1>{_text(title)}</h1>\n{''.join(sections)}</body>\n</html>\n"
  ), lines + scores


class _Reader:
  """Reads and scores predictions, those of each step once."""

  def __init__(self, resamples):
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


def _overview(runs, names):
  """A card for each run: how far it came, what was best, what is amiss."""
  cards = []
  for i, (run, name) in enumerate(zip(runs, names, strict=True)):
    colour = _colour(i)
    facts = [_text(str(run.status))]
    if run.checkpoint is not None and run.status.state != "finished":
      facts.append(f"last checkpoint: that of step {run.checkpoint}")
    if {"score", "value", "step"} <= run.best.keys():
      facts.append(
        f"best weights: {_text(run.best['score'])} "
        f"{_number(run.best['value'])}, at step {_text(run.best['step'])}"
      )
    if not run.training and not run.evaluations:
      facts.append("nothing is measured yet")
    facts += [f'<span class="bad">{_text(x)}</span>' for x in run.problems]
    share = run.status.step / (run.status.total_steps or run.status.step or 1)
    bar = f'<div class="bar"><i style="width: {min(share, 1):.1%}; '
    cards.append(
      f'<div class="card"><h3>{_dot(i)}{_text(name)}</h3>'
      f'{bar}background: {colour}"></i></div>'
      + "".join(f"<p>{fact}</p>" for fact in facts)
      + "</div>"
    )
  return f'<div class="runs">{"".join(cards)}</div>\n'


def _scores(runs, names, evaluated, reader):
  """The table of scores; lines on those that decide, and their names."""
  rows, lines, remarks, main_scores = [], [], {}, {}
  for evaluator, own in evaluated.items():
    main = {}
    for i, evaluation in own.items():
      metric = reader.metric(evaluation)
      main[i] = _main_score(runs[i], evaluation, metric)
      last = reader.scored(evaluation, evaluation.steps[-1])
      if evaluation.generates and (problem := _problem(last)):
        remarks[problem] = None
    for score in dict.fromkeys(x for e in own.values() for x in e.scores):
      for i, evaluation in own.items():
        if not (values := evaluation.scores.get(score)):
          continue
        best = evaluation.best_step(score, reader.metric(evaluation))
        cells = [min(values), max(values), best]
        estimated = {max(values)} | ({best} if score == main[i] else set())
        texts = [
          ""
          if step is None
          else _value(
            values[step],
            step,
            _interval(
              reader.estimates(evaluation, step).get(score)
              if step in estimated and evaluation.generates
              else None
            ),
          )
          for step in cells
        ]
        count = evaluation.counts[max(values)]
        label = f"{_dot(i)}{_text(names[i])}" if len(runs) > 1 else ""
        rows.append(
          (_text(f"{evaluator}/{score}"), label, *texts, f"{count:.0f}")
        )
        if score == main[i]:
          main_scores[f"{evaluator.removesuffix(EMA)}/{score}"] = None
          lines.append(
            f"{names[i]}: {evaluator}/{score} {texts[0]}, {texts[1]}, "
            f"n={count:.0f}"
          )
  if not rows:
    return "", [], []
  headings = ("score", "run" if len(runs) > 1 else "", "first", "last", "best")
  notes = "".join(f'<p class="bad">{_text(x)}</p>' for x in remarks)
  return (
    (
      "<h2>Scores</h2>"
      '<p class="faint">In brackets: 95% intervals of the bootstrap over '
      "examples, where predictions are kept.</p>"
      f"{_table((*headings, 'examples'), rows)}{notes}\n"
    ),
    lines,
    list(main_scores),
  )


def _main_score(run, evaluation, metric):
  """The score that decides: of keep_best, or the first of the metric."""
  kept = str(run.best.get("score", "")).removeprefix(f"{evaluation.name}/")
  known = getattr(metric, "higher_is_better", {})
  order = [kept, *known, *evaluation.scores]
  return next((x for x in order if x in evaluation.scores), None)


def _problem(scored):
  return scored if isinstance(scored, str) else scored.problem


def _curves(runs, names, main_scores):
  """All curves; runs are told apart by colour."""
  found = {}  # title -> lines
  for i, run in enumerate(runs):
    for name, series in _measured(run).items():
      line = run_curves.Line(series, _colour(i))
      found.setdefault(name, []).append((i, line))
  for i, run in enumerate(runs):
    for name, evaluation in run.evaluations.items():
      for score, series in evaluation.scores.items():
        title = f"{name.removesuffix(EMA)}/{score}"
        dashed = name.endswith(EMA)
        line = run_curves.Line(series, _colour(i), dashed, marked=True)
        found.setdefault(title, []).append((i, line))
  if not found:
    return ""
  # By the order of what counts; all others are shown when they are asked for.
  order = [
    *(x for x in found if x.partition("/")[0] in _FIRST),
    *(x for x in found if x in main_scores),
    *(x for x in _LAST if x in found),
  ]
  groups = [order, sorted(found.keys() - set(order))]
  first, others = (
    f'<div class="curves">{"".join(_figure(x, found[x], names) for x in group)}'
    "</div>"
    for group in groups
  )
  notes = ["Over steps."]
  if any(line.dashed for lines in found.values() for _, line in lines):
    notes.append("Moving averages of the weights are dashed.")
  if "peak_memory_gib" not in found:
    notes.append("Memory is not shown: this device (a CPU?) does not count it.")
  if groups[1]:
    about = f"{len(groups[1])} more curves: {', '.join(groups[1])}"
    others = f"<details><summary>{_text(about)}</summary>{others}</details>"
  return (
    f'<h2>Curves</h2><p class="faint">{" ".join(notes)}</p>{first}{others}\n'
  )


def _figure(title, lines, names):
  captions = []
  for i, line in lines:
    first, last = (line.values[f(line.values)] for f in (min, max))
    who = f"{_dot(i)}{_text(names[i])} " if names[1:] else ""
    average = " (moving average)" if line.dashed else ""
    captions.append(f"{who}{_number(first)} → {_number(last)}{average}")
  drawn = run_curves.draw([line for _, line in lines], _text(title))
  return (
    f"<figure>{drawn}<figcaption><b>{_text(title)}</b> "
    f"{'<br>'.join(captions)}</figcaption></figure>\n"
  )


def _measured(run):
  """What is measured of steps, but for what is the same in all of them."""
  found = {
    name: series
    for name, series in run.training.items()
    if not bootstrap.is_count(name)
    and (name not in _COUNTS or any(series.values()))
  }
  speeds = found.get("examples_per_second", {})
  if isinstance(size := run.values.get("batch_size"), int):
    times = {step: size / x for step, x in speeds.items() if x > 0}
    found |= {_TIME: times} if times else {}
  return found


def _numbers(runs, names):
  """The numbers of the curves."""
  tables = []
  for run, name in zip(runs, names, strict=True):
    groups = {"Training": _measured(run)} | {
      evaluator: {**evaluation.scores, "examples": evaluation.counts}
      for evaluator, evaluation in run.evaluations.items()
    }
    for group, columns in groups.items():
      steps = sorted({step for series in columns.values() for step in series})
      every = -(-len(steps) // _NUMBERS) or 1
      shown = [x for i, x in enumerate(reversed(steps)) if i % every == 0][::-1]
      if shown:
        rows = [
          (
            str(step),
            *(_number(s[step]) if step in s else "" for s in columns.values()),
          )
          for step in shown
        ]
        about = f"{name}: {group}"
        about += f", every {every}th step that was logged" * (every > 1)
        tables.append(
          f"<h3>{_text(about)}</h3>"
          + _table(("step", *map(_text, columns)), rows, numbers=True)
        )
  if not tables:
    return ""
  return (
    "<details><summary>The numbers of all curves</summary>"
    f"{''.join(tables)}</details>\n"
  )


def _answers(evaluator, names, own, reader):
  """Predictions of an evaluator: over time, the worst, and in tables."""
  last = {i: reader.scored(e, e.steps[-1]) for i, e in own.items()}
  last = {i: x for i, x in last.items() if not isinstance(x, str)}
  if not last:
    if any(e.generates for e in own.values()):
      problem = next(reader.scored(e, e.steps[-1]) for e in own.values())
      return (
        f"<h2>{_text(evaluator)}</h2>"
        f'<p class="bad">No predictions to show: {_text(problem)}</p>\n'
      )
    return ""
  evaluation = own[min(last)]
  if len(last) > 1:
    gallery = {f"{names[i]}": scored.records for i, scored in last.items()}
    about = "The same examples at the last evaluation of each run."
  else:
    steps = evaluation.steps
    chosen = sorted({steps[0], steps[len(steps) // 2], steps[-1]})
    found = {step: reader.scored(evaluation, step) for step in chosen}
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
  parts = [
    f"<h2>{_text(evaluator)}</h2><h3>Predictions</h3>"
    f'<p class="faint">{about} {_LEGEND}</p>'
    f'<div class="examples">{"".join(shown)}</div>'
  ]
  for i, scored in last.items():
    step = own[i].steps[-1]
    inner = _errors(scored) + _confusion(scored) + _by_label(scored)
    if inner and len(names) > 1:
      inner = (
        f"<details><summary>{_dot(i)}{_text(names[i])}: errors of step {step}"
        f"</summary>{inner}</details>"
      )
    parts.append(inner)
  return "".join(parts) + "\n"


_LEGEND = (
  "A predicted box is green if it overlaps with a true one of the same label "
  "(IoU 0.5 or more), else red; true ones are white, and red if missed."
)


def _example(example):
  answers = list(example.answers)
  truth = f"<b>truth</b> {_text(example.truth)}"
  shown = [_picture(example.picture, example.problem, truth)]
  texts = []
  for answer in answers:
    mark = {True: "good", False: "bad", None: ""}[answer.is_right]
    sign = {True: "✓ ", False: "✗ ", None: ""}[answer.is_right]
    text = (
      f"<b>{_text(answer.heading)}</b> "
      f'<span class="{mark}">{sign}{_text(answer.text) or "(empty)"}</span>'
    )
    if answer.picture is None:
      texts.append(f"<p>{text}</p>")
    else:
      shown.append(_picture(answer.picture, "", text))
  note = f" ({_text(example.note)})" if example.note else ""
  return (
    f'<div class="card"><p><b>{_text(example.prompt)}</b>{note} '
    f'<span class="where">{_text(example.where)}</span></p>'
    f'<div class="strip">{"".join(shown)}<div>{"".join(texts)}</div></div>'
    "</div>\n"
  )


def _picture(url, problem, caption):
  inside = f'<img alt="" src="{url}">'
  if url is None:
    inside = f'<div class="gone faint">no picture: {_text(problem)}</div>'
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
    cells = [f"<th>{_text(truth or '(empty)')}</th>"]
    for found in labels:
      count = counts.get((truth, found), 0)
      heat = 0.75 * count / totals[truth]
      kind = ' class="diagonal"' if truth == found else ""
      cells.append(
        f'<td{kind} style="background: rgba(var(--heat), {heat:.2f})">'
        f"{count or ''}</td>"
      )
    rows.append(f"<tr>{''.join(cells)}</tr>")
  heads = "".join(f"<th>{_text(x or '(empty)')}</th>" for x in labels)
  return (
    '<h3>Confusion</h3><p class="faint">Rows: the truth. Columns: what is '
    "predicted. Shades are shares of a row.</p>"
    f'<div class="scroll"><table class="confusion"><thead><tr><th>truth</th>'
    f"{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
  )


def _by_label(scored):
  rows = [
    (
      _text(label),
      str(true),
      str(found),
      *(_number(scores[x]) if x in scores else "" for x in ("AP50", "AP")),
    )
    for label, true, found, scores in run_answers.precision_by_label(scored)
  ]
  if not rows:
    return ""
  headings = ("label", "true boxes", "predicted boxes", "AP50", "AP")
  return "<h3>Average precision by label</h3>" + _table(
    headings, rows, numbers=True
  )


def _configs(runs, names):
  """What differs between the configs, what changed, and all values."""
  parts = []
  every = dict.fromkeys(x for run in runs for x in sorted(run.values))
  if len(runs) > 1:
    rows = [
      (_text(name), *(_json(run.values.get(name)) for run in runs))
      for name in every
      if len({_json(run.values.get(name)) for run in runs}) > 1
    ]
    heads = [f"{_dot(i)}{_text(name)}" for i, name in enumerate(names)]
    parts.append("<h3>What differs</h3>")
    parts.append(
      _table(("value", *heads), rows, kind="value")
      if rows
      else "<p>The configs are the same.</p>"
    )
  for run, name in zip(runs, names, strict=True):
    rows = [
      (str(step), _text(key), *map(_json, list(pair)[:2]))
      for step, changes in run.changes
      for key, pair in changes.items()
    ]
    if rows:
      parts.append(f"<h3>{_text(name)}: changed when it was resumed</h3>")
      heads = ("step", "value", "before", "after")
      parts.append(_table(heads, rows, kind="value"))
  for run, name in zip(runs, names, strict=True):
    if run.values:
      rows = [(_text(key), _json(x)) for key, x in sorted(run.values.items())]
      parts.append(
        f"<details><summary>All values of {_text(name)}</summary>"
        f"{_table(('value', ''), rows, kind='value')}</details>"
      )
  return f"<h2>Config</h2>{''.join(parts)}\n" if parts else ""


def _table(
  headings: Sequence[str],
  rows: Sequence[Sequence[str]],
  *,
  numbers: bool = False,
  kind: str = "",
) -> str:
  """A table of HTML cells; of numbers all columns but the first are."""
  classes = [
    "" if i == 0 else "number" if numbers else kind
    for i in range(len(headings))
  ]
  head, *body = (
    "".join(
      f'<{tag} class="{c}">{cell}</{tag}>' if c else f"<{tag}>{cell}</{tag}>"
      for c, cell in zip(classes, row, strict=True)
    )
    for tag, row in [("th", headings), *(("td", row) for row in rows)]
  )
  lines = "".join(f"<tr>{row}</tr>" for row in body)
  return (
    f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
    f"<tbody>{lines}</tbody></table></div>"
  )


def _colour(i):
  return run_curves.COLOURS[i % len(run_curves.COLOURS)]


def _dot(i):
  return f'<span class="dot" style="background: {_colour(i)}"></span>'


def _value(value, step, interval):
  return f"{_number(value)}{interval} at step {step}"


def _interval(found):
  if found is None or found.low is None:
    return ""
  return f" [{_number(found.low)}, {_number(found.high)}]"


def _number(value):
  return f"{value:.4g}" if isinstance(value, int | float) else _text(value)


def _json(value):
  text = "" if value is None else json.dumps(value, ensure_ascii=False)
  return _text(messages.shown(text))


def _text(value):
  return html.escape(messages.one_line(value) if str(value) else "")
