"""Renders samples and lengths as one HTML file with embedded images."""

import html
from collections.abc import Collection, Sequence

import numpy as np
from PIL import Image

from paligemma.data import drawing, objects
from scripts.inspection.samples import Sample
from trainers import run_curves, run_html

SIDE = 336  # pixels of an image on the page, of several half as many

# Class of a token -> what it is.
_TOKENS = {
  "start": "a text of the row begins",
  "prompt": "prompt, seen by all",
  "supervised": "in the loss",
  "unsupervised": "not in the loss, seen by what follows",
  "caption": "caption",
  "padding": "padding",
}


def page(title: str, sections: Sequence[str], kinds: Collection[str]) -> str:
  """The whole page, with a legend of so many kinds of tokens."""
  legend = (
    f'<span class="{x}">{text}</span> '
    for x, text in _TOKENS.items()
    if x in {"padding", *kinds}
  )
  legend = f'<p class="tokens">Tokens: {"".join(legend)}</p>\n'
  return run_html.page(title, [legend, *sections])


def section(
  name: str,
  facts: Sequence[tuple[str, str]],
  charts: Sequence[str],
  cards: Sequence[str],
) -> str:
  """What one source gives: a table of facts, histograms and examples."""
  rows = [(_text(key), _text(value)) for key, value in facts]
  return (
    f"<h2>{_text(name)}</h2>\n{run_html.table(('', ''), rows, kind='value')}\n"
    f'<div class="curves">{"".join(charts)}</div>\n'
    f'<div class="runs">{"".join(cards)}</div>\n'
  )


def histogram(title: str, values: np.ndarray, limit: int | None) -> str:
  """A figure of how often each length occurs, those above a limit in red."""
  if not len(values):
    return ""
  above = f", {int((values > limit).sum())} above {limit}" if limit else ""
  what = f"tokens of {_text(title)}"
  return (
    f"<figure>{run_curves.histogram(values, limit, what)}"
    f"<figcaption>{what}: median {int(np.median(values))}, most "
    f"{int(values.max())}{above}</figcaption></figure>"
  )


def card(sample: Sample) -> str:
  """One example: images with objects, texts and tokens, or its error."""
  where = f'<p class="where">{sample.index}: {_text(sample.where)}</p>'
  if sample.problem:
    return f'<div class="card bad">{where}<p>{_text(sample.problem)}</p></div>'
  side = SIDE if len(sample.frames) == 1 else SIDE // 2
  # What is located is in the first image; which of several cannot be said.
  images = "".join(
    _image(frame, [] if number else list(sample.objects), side)
    for number, frame in enumerate(sample.frames)
  )
  tokens = "".join(
    f'<span class="{token.kind}">{_visible(token.text)}</span>'
    for token in sample.texts.tokens
  )
  if padding := sample.texts.padding:
    tokens += f'<span class="padding">{padding} of padding</span>'
  texts = "".join(
    f"<p><b>{_text(label)}</b> {_text(text)}</p>"
    for label, text in sample.texts.labelled
  )
  malformed = "".join(f"<p>{_text(what)}</p>" for what in sample.malformed)
  return (
    f'<div class="card">{where}<div class="frames">{images}</div>'
    f'{texts}{malformed}<p class="tokens">{tokens}</p></div>\n'
  )


def _image(frame, located, side):
  picture = drawing.enlarge(Image.fromarray(frame), side)
  new = picture.height, picture.width
  drawing.draw_objects(picture, objects.resize(located, frame.shape[:2], new))
  return f'<img alt="" src="{run_html.url(picture)}">'


def _visible(text):
  return _text(text.replace("\n", "\u21b5") or "\u2205")


def _text(text):
  return html.escape(str(text))
