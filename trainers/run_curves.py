"""Curves of runs over steps, and histograms, as SVG for a page.

Matplotlib draws them, rather than Vega-Lite in the page: a page then holds no
script at all and 14 kB a curve, in place of 800 kB of JavaScript that this
project would have to ship and keep safe; and curves can be printed and read
where scripts are off. What is lost is zooming, for which the page has a table
of the numbers.
"""

import dataclasses
import io
import itertools
import re
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from jaxtyping import Int
from matplotlib import figure, ticker

# Of runs; they can be told apart on white and on black, by most people.
COLOURS = ("#3b82f6", "#f97316", "#16a34a", "#d946a6", "#a1761b", "#8b5cf6")
_INK = "#010203"  # becomes the colour of the page's text
_SIZE = 3.6, 2.1  # inches; a phone shows it as wide as that
# Room for numbers; fixed, as fitting it would take as long as drawing.
_MARGINS = dict(left=0.145, right=0.94, top=0.91, bottom=0.13)
_MOST = 1000  # points of a curve; of more, means of successive ones
_BARS = 40  # of a histogram
_OVER = "#dc2626"
_SMOOTHED = 60  # points from which on a moving mean is drawn over them
_RC = {
  "axes.axisbelow": True,
  "axes.edgecolor": _INK,
  "axes.formatter.limits": (-3, 4),
  "axes.formatter.use_mathtext": False,
  "axes.spines.right": False,
  "axes.spines.top": False,
  "font.size": 8.5,
  "grid.alpha": 0.18,
  "grid.color": _INK,
  "svg.fonttype": "none",  # texts stay texts
  "svg.hashsalt": "paligemma",
  "text.color": _INK,
  "xtick.color": _INK,
  "ytick.color": _INK,
}
_numbers = itertools.count()


@dataclasses.dataclass(frozen=True)
class Line:
  """One curve of a figure.

  Attributes:
    values: by step.
    colour: "#rrggbb".
    dashed: as of moving averages of the weights.
    marked: whether each point is.
  """

  values: Mapping[int, float]
  colour: str
  dashed: bool = False
  marked: bool = False


def draw(lines: Sequence[Line], label: str) -> str:
  """Returns the SVG element of lines over steps, as wide as there is room.

  Args:
    label: what is read out in place of it, already escaped.
  """

  def plot(axes):
    for line in lines:
      _plot(axes, line)
    if len(steps := {step for line in lines for step in line.values}) == 1:
      axes.set_xlim(min(steps) - 1, max(steps) + 1)

  return _draw(plot, label)


def histogram(
  values: Int[np.ndarray, " N"], limit: int | None, label: str
) -> str:
  """Returns the SVG element of how often each value occurs.

  Args:
    values: from 0 on, one at least.
    limit: what is above it is red; None: nothing is.
    label: as of `draw`.
  """
  over = 0 if limit is None else limit + 1  # no bar reaches over it
  end = max(int(values.max()), over) + 1
  width = -(-end // _BARS)
  edges = np.arange(-(-over % width), end + width, width)
  counts, _ = np.histogram(values, edges)
  colours = np.where((edges >= over) & (limit is not None), _OVER, COLOURS[0])

  def plot(axes):
    (shown,) = np.nonzero(counts)
    axes.bar(
      edges[shown], counts[shown], width, align="edge", color=colours[shown]
    )
    axes.set_xlim(edges[0], end)
    if limit is not None:
      axes.axvline(over, color=_OVER)

  return _draw(plot, label)


def _draw(plot, label):
  with mpl.rc_context(_RC):
    drawn = figure.Figure(figsize=_SIZE)
    drawn.subplots_adjust(**_MARGINS)
    axes = drawn.subplots()
    axes.margins(x=0.02)
    plot(axes)
    axes.grid(visible=True)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(ticker.MaxNLocator(5))
    file = io.StringIO()
    drawn.savefig(file, format="svg", transparent=True)
  return _inline(file.getvalue(), label)


def _plot(axes, line):
  steps = np.array(sorted(line.values))
  values = np.array([line.values[step] for step in steps], float)
  values[~np.isfinite(values)] = np.nan
  if len(steps) > _MOST:
    steps, values = (
      np.array([part.mean() for part in np.array_split(x, _MOST)])
      for x in (steps, values)
    )
  style = dict(color=line.colour, linestyle="--" if line.dashed else "-")
  style["marker"] = "o" if line.marked or len(steps) == 1 else ""
  style["markersize"] = 3.5
  smoothed = len(steps) >= _SMOOTHED and not line.marked
  alpha = 0.3 if smoothed else 1.0
  width = 0.9 if smoothed else 1.4
  axes.plot(steps, values, linewidth=width, alpha=alpha, **style)
  if smoothed:
    axes.plot(steps, _moving_mean(values), linewidth=1.6, **style)


def _moving_mean(values):
  """Of a tenth of the points around each, which are fewer at the ends."""
  window = np.ones(len(values) // 20 * 2 + 1)
  sums, counts = (np.convolve(x, window, "same") for x in (values, values**0))
  return sums / counts


def _inline(svg, label):
  """The element alone, with ids that no other one of a page has."""
  svg = svg[svg.index("<svg") :]
  for needless in (r"<(metadata|style).*?</\1>", r"<!--.*?-->"):
    svg = re.sub(needless, "", svg, flags=re.DOTALL)
  svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
  svg = re.sub(r"\s+", " ", svg).replace("> <", "><")
  prefix = f"c{next(_numbers)}-"
  svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", svg)
  svg = svg.replace("xlink:href", "href").replace(_INK, "currentColor")
  view = re.search(r'viewBox="[^"]*"', svg)[0]
  start = f'<svg {view} role="img" aria-label="{label}">'
  return re.sub(r"<svg[^>]*>", lambda _: start, svg, count=1)
