"""Renders samples and lengths as one HTML file with embedded images."""

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from paligemma.data import drawing, objects
from scripts.inspection.samples import Sample

SIDE = 336  # pixels of an image on the page, of several half as many
BARS = 40  # of a histogram

_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em; color: #222;
  background: #fff; }
h2 { border-top: 1px solid #ccc; padding-top: 1em; margin-top: 2em; }
table { border-collapse: collapse; }
td, th { padding: 2px 12px 2px 0; text-align: left; vertical-align: top; }
.charts, .cards { display: flex; flex-wrap: wrap; gap: 16px; margin: 1em 0; }
.card { border: 1px solid #ddd; border-radius: 4px; padding: 8px; width: 360px;
  overflow-wrap: anywhere; }
.card p { margin: 4px 0; }
.bad { border-color: #c00; color: #900; }
.where { color: #777; font-size: 12px; }
.frames { display: flex; flex-wrap: wrap; gap: 2px; }
.tokens span { font: 12px/1.7 ui-monospace, monospace; white-space: pre-wrap;
  border-radius: 2px; padding: 1px; margin: 1px; }
.prompt { background: #d7e5fb; }
.supervised { background: #c9efcf; }
.answer { background: #fbe3c0; }
.padding { background: #eee; color: #777; }
"""


def page(title: str, sections: Sequence[str]) -> str:
  """The whole page; needs no other file and no script."""
  legend = "".join(
    f'<span class="{kind}">{text}</span> '
    for kind, text in (
      ("prompt", "prompt, seen by all"),
      ("supervised", "answer, in the loss"),
      ("answer", "answer, not in the loss"),
      ("padding", "padding"),
    )
  )
  return (
    '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
    f"<title>{_text(title)}</title><style>{_STYLE}</style>\n"
    f"<h1>{_text(title)}</h1>"
    f'<p class="tokens">Tokens: {legend}</p>\n{"".join(sections)}</html>\n'
  )


def section(
  name: str,
  facts: Sequence[tuple[str, str]],
  charts: Sequence[str],
  cards: Sequence[str],
) -> str:
  """What one source gives: a table of facts, histograms and examples."""
  rows = "".join(
    f"<tr><th>{_text(key)}</th><td>{_text(value)}</td></tr>"
    for key, value in facts
  )
  return (
    f"<h2>{_text(name)}</h2>\n<table>{rows}</table>\n"
    f'<div class="charts">{"".join(charts)}</div>\n'
    f'<div class="cards">{"".join(cards)}</div>\n'
  )


def histogram(title: str, values: np.ndarray, limit: int | None) -> str:
  """An SVG of how often each length occurs, with those above a limit in red."""
  if not len(values):
    return ""
  top = max(int(values.max()), limit or 0) + 1
  wide = -(-top // BARS)
  # No bar reaches over the limit.
  shift = 0 if limit is None else -(limit + 1) % wide
  counts = np.bincount((values + shift) // wide)
  width, height = 320, 90
  unit = width / -(-(top + shift) // wide)
  shapes = []
  for i in np.flatnonzero(counts):
    tall = height * counts[i] / counts.max()
    first = i * wide - shift
    last = first + wide - 1
    over = limit is not None and first > limit
    span = f"{last}" if wide == 1 else f"{max(first, 0)} to {last}"
    shapes.append(
      f'<rect x="{i * unit:.2f}" y="{height - tall:.2f}" '
      f'width="{max(unit - 0.5, 0.5):.2f}" height="{tall:.2f}" '
      f'fill="{"#c00" if over else "#58a"}">'
      f"<title>{span} tokens: {counts[i]}</title></rect>"
    )
  if limit is not None:
    x = (limit + 1 + shift) / wide * unit
    shapes.append(
      f'<line x1="{x:.2f}" x2="{x:.2f}" y1="0" y2="{height}" stroke="#c00"/>'
    )
  above = f", {int((values > limit).sum())} above {limit}" if limit else ""
  return (
    f'<figure style="margin:0"><svg width="{width}" height="{height + 16}" '
    f'role="img">{"".join(shapes)}'
    f'<text x="0" y="{height + 13}" font-size="11">0</text>'
    f'<text x="{width}" y="{height + 13}" font-size="11" text-anchor="end">'
    f"{top - 1}</text></svg>"
    f"<figcaption>{_text(title)}: median {int(np.median(values))}, most "
    f"{int(values.max())}{above}</figcaption></figure>"
  )


def card(sample: Sample) -> str:
  """One example: images with objects, texts and tokens, or its error."""
  where = f'<p class="where">{sample.index}: {_text(sample.where)}</p>'
  if sample.problem:
    return f'<div class="card bad">{where}<p>{_text(sample.problem)}</p></div>'
  side = SIDE if len(sample.frames) == 1 else SIDE // 2
  # What is located is in the first image; which of several cannot be said.
  first, *others = sample.frames
  images = _image(first, list(sample.objects), side)
  images += "".join(_image(frame, [], side) for frame in others)
  tokens = "".join(
    f'<span class="{token.kind}">{_visible(token.text)}</span>'
    for token in sample.tokens
  )
  if sample.padding:
    tokens += f'<span class="padding">{sample.padding} of padding</span>'
  cut = " (cut to fit)" if sample.truncated else ""
  answers = " | ".join(sample.answers) if sample.answers else "none"
  malformed = "".join(f"<p>{_text(what)}</p>" for what in sample.malformed)
  return (
    f'<div class="card">{where}<div class="frames">{images}</div>'
    f"<p><b>prompt</b> {_text(sample.prefix)}</p>"
    f"<p><b>answer</b>{cut} {_text(answers)}</p>{malformed}"
    f'<p class="tokens">{tokens}</p></div>\n'
  )


def _image(frame, located, side):
  picture = drawing.enlarge(Image.fromarray(frame), side)
  new = picture.height, picture.width
  drawing.draw_objects(picture, objects.resize(located, frame.shape[:2], new))
  file = io.BytesIO()
  picture.save(file, "JPEG", quality=85)
  data = base64.b64encode(file.getvalue()).decode()
  return (
    f'<img width="{side}" height="{side}" alt="" '
    f'src="data:image/jpeg;base64,{data}">'
  )


def _visible(text):
  return _text(text.replace("\n", "\u21b5") or "\u2205")


def _text(text):
  return html.escape(str(text))
