"""One HTML page about one run or several, which needs no other file.

It holds no script and asks for nothing on any network: curves are SVG, pictures
are in the page, and every number of a curve is in a table too.
"""

from collections.abc import Sequence

import jax
from etils import epath

from paligemma import disk, messages
from paligemma.metrics import bootstrap
from trainers import progress, run_curves, run_examples, run_files, run_html
from trainers.best import EMA
from trainers.run_files import Run
from trainers.run_html import as_json, colour, dot, escaped, number, table

RESAMPLES = 200  # of scores that are not means
_NUMBERS = 24  # rows of the table of what is measured of steps
_TIME = "seconds_per_step"
# Curves before and after those of the scores that decide.
_FIRST = ("loss", "learning_rate")
_LAST = ("peak_memory_gib", "examples_per_second", _TIME)
# What says nothing about how a run went unless it is above 0, or is constant.
_COUNTS = ("skipped", "truncated", "empty_batches")


def write_at_end(
  *folders: epath.PathLike, out: epath.PathLike | None = None
) -> None:
  """Writes the report of runs that have ended; what goes wrong is one line.

  Intervals that take long are left to the command, see Scored.estimate.
  """
  if jax.process_index() != 0:
    return
  try:
    path, _ = write(folders, out, resamples=0)
    progress.say([f"wrote {path}"])
  except Exception as error:  # the runs themselves have ended well
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
  reader = run_examples.Reader(resamples)
  lines = []
  for run, name in zip(runs, names, strict=True):
    lines.append(f"{name}: {run.status}")
    lines += [f"{name}: {problem}" for problem in run.problems]
  scores, said, decide = _scores(runs, names, evaluated, reader)
  sections = [
    _overview(runs, names),
    scores,
    _curves(runs, names, decide),
    _numbers(runs, names),
    *(
      run_examples.section(x, names, own, reader)
      for x, own in evaluated.items()
    ),
    _configs(runs, names),
  ]
  title = f"Report of {', '.join(names)}"
  return run_html.page(title, sections), lines + said


def _overview(runs, names):
  """A card for each run: how far it came, what was best, what is amiss."""
  cards = []
  for i, (run, name) in enumerate(zip(runs, names, strict=True)):
    facts = [escaped(str(run.status))]
    if run.checkpoint is not None and run.status.state != "finished":
      facts.append(f"last checkpoint: that of step {run.checkpoint}")
    if {"score", "value", "step"} <= run.best.keys():
      facts.append(
        f"best weights: {escaped(run.best['score'])} "
        f"{number(run.best['value'])}, at step {escaped(run.best['step'])}"
      )
    if not run.training and not run.evaluations:
      facts.append("nothing is measured yet")
    facts += [f'<span class="bad">{escaped(x)}</span>' for x in run.problems]
    share = run.status.step / (run.status.total_steps or run.status.step or 1)
    bar = f'<div class="bar"><i style="width: {min(share, 1):.1%}; '
    cards.append(
      f'<div class="card"><h3>{dot(i)}{escaped(name)}</h3>'
      f'{bar}background: {colour(i)}"></i></div>'
      + "".join(f"<p>{fact}</p>" for fact in facts)
      + "</div>"
    )
  return f'<div class="runs">{"".join(cards)}</div>\n'


def _scores(runs, names, evaluated, reader):
  """The table of scores; lines on those that decide, and their names."""
  rows, lines, remarks, decide = [], [], {}, {}
  for evaluator, own in evaluated.items():
    metrics = {i: reader.metric(e) for i, e in own.items()}
    main = {i: _main_score(runs[i], e, metrics[i]) for i, e in own.items()}
    for evaluation in own.values():
      if evaluation.predicts:
        last = reader.scored(evaluation, evaluation.steps[-1])
        remarks[getattr(last, "problem", "")] = None
    for score in dict.fromkeys(x for e in own.values() for x in e.scores):
      for i, evaluation in own.items():
        if not (values := evaluation.scores.get(score)):
          continue
        first, last = min(values), max(values)
        best = evaluation.best_step(score, metrics[i])
        known = {last} | ({best} if score == main[i] else set())
        texts = {
          step: _estimate(
            values[step],
            reader.estimates(evaluation, step).get(score)
            if step in known and evaluation.predicts
            else None,
          )
          for step in {first, last, best} - {None}
        }
        cells = (
          "" if step is None else f"{texts[step]}<br><i>step {step}</i>"
          for step in (first, last, best)
        )
        label = f"{dot(i)}{escaped(names[i])}" if len(runs) > 1 else ""
        count = f"{evaluation.counts[last]:.0f}"
        name = f"{evaluator}/{score}"
        rows.append((escaped(name), label, *cells, count))
        if score == main[i]:
          decide[f"{evaluator.removesuffix(EMA)}/{score}"] = None
          said = [
            f"{texts[step]} at step {step}{what}"
            for step, what in {first: "", best: " (best)", last: ""}.items()
            if step is not None
          ]
          lines.append(f"{names[i]}: {name} {', '.join(said)}, n={count}")
  if not rows:
    return "", [], []
  remarks.pop("", None)
  headings = ("score", "run" if len(runs) > 1 else "", "first", "last", "best")
  notes = "".join(f'<p class="bad">{escaped(x)}</p>' for x in remarks)
  return (
    (
      "<h2>Scores</h2>"
      '<p class="faint">In brackets: 95% intervals of the bootstrap over '
      "examples, where predictions are kept and scripts.report has computed "
      f"them.</p>{table((*headings, 'examples'), rows, kind='score')}{notes}\n"
    ),
    lines,
    list(decide),
  )


def _main_score(run, evaluation, metric):
  """The score that decides: of keep_best, or the first of the metric."""
  kept = str(run.best.get("score", "")).removeprefix(f"{evaluation.name}/")
  known = getattr(metric, "higher_is_better", {})
  order = [kept, *known, *evaluation.scores]
  return next((x for x in order if x in evaluation.scores), None)


def _curves(runs, names, main_scores):
  """All curves; runs are told apart by colour."""
  found = {}  # title -> lines
  for i, run in enumerate(runs):
    for name, series in _measured(run).items():
      line = run_curves.Line(series, colour(i))
      found.setdefault(name, []).append((i, line))
  for i, run in enumerate(runs):
    for name, evaluation in run.evaluations.items():
      for score, series in evaluation.scores.items():
        title = f"{name.removesuffix(EMA)}/{score}"
        dashed = name.endswith(EMA)
        line = run_curves.Line(series, colour(i), dashed, marked=True)
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
    others = f"<details><summary>{escaped(about)}</summary>{others}</details>"
  return (
    f'<h2>Curves</h2><p class="faint">{" ".join(notes)}</p>{first}{others}\n'
  )


def _figure(title, lines, names):
  captions = []
  for i, line in lines:
    first, last = (line.values[f(line.values)] for f in (min, max))
    who = f"{dot(i)}{escaped(names[i])} " if names[1:] else ""
    average = " (moving average)" if line.dashed else ""
    captions.append(f"{who}{number(first)} → {number(last)}{average}")
  drawn = run_curves.draw([line for _, line in lines], escaped(title))
  told = "<br>".join(["", *captions] if names[1:] else captions)
  return (
    f"<figure>{drawn}<figcaption><b>{escaped(title)}</b> "
    f"{told}</figcaption></figure>\n"
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
            *(number(s[step]) if step in s else "" for s in columns.values()),
          )
          for step in shown
        ]
        about = f"{name}: {group}"
        about += f", every {every}th step that was logged" * (every > 1)
        tables.append(
          f"<h3>{escaped(about)}</h3>"
          + table(("step", *map(escaped, columns)), rows, kind="number")
        )
  if not tables:
    return ""
  return (
    "<details><summary>The numbers of all curves</summary>"
    f"{''.join(tables)}</details>\n"
  )


def _configs(runs, names):
  """What differs between the configs, what changed, and all values."""
  parts = []
  every = dict.fromkeys(x for run in runs for x in sorted(run.values))
  if len(runs) > 1:
    rows = [
      (
        escaped(name),
        *(as_json(run.values.get(name)) for run in runs),
      )
      for name in every
      if len({as_json(run.values.get(name)) for run in runs}) > 1
    ]
    heads = [f"{dot(i)}{escaped(name)}" for i, name in enumerate(names)]
    parts.append("<h3>What differs</h3>")
    parts.append(
      table(("value", *heads), rows, kind="value")
      if rows
      else "<p>The configs are the same.</p>"
    )
  for run, name in zip(runs, names, strict=True):
    rows = [
      (str(step), escaped(key), *map(as_json, list(pair)[:2]))
      for step, changes in run.changes
      for key, pair in changes.items()
    ]
    if rows:
      parts.append(f"<h3>{escaped(name)}: changed when it was resumed</h3>")
      heads = ("step", "value", "before", "after")
      parts.append(table(heads, rows, kind="value"))
  for run, name in zip(runs, names, strict=True):
    if run.values:
      rows = [
        (escaped(key), as_json(x)) for key, x in sorted(run.values.items())
      ]
      parts.append(
        f"<details><summary>All values of {escaped(name)}</summary>"
        f"{table(('value', ''), rows, kind='value')}</details>"
      )
  return f"<h2>Config</h2>{''.join(parts)}\n" if parts else ""


def _estimate(value, found):
  """Such as "0.694 [0.655, 0.763]"."""
  if found is None or found.low is None:
    return number(value)
  return f"{number(value)} [{number(found.low)}, {number(found.high)}]"
