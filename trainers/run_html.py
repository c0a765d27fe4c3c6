"""Pieces of HTML: a page that needs no other file, tables, and texts of users.

A cell of a table is HTML; everything else becomes it here.
"""

import base64
import html
import io
import json
from collections.abc import Sequence
from typing import Any

from PIL import Image

from paligemma import messages
from trainers import run_curves

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
.examples { align-items: start; grid-template-columns: repeat(auto-fill,
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
td > div { min-height: 1.5em; padding: 0 0.45rem; }
.diagonal { outline: 1px solid var(--faint); outline-offset: -1px; }
.score { white-space: nowrap; } .score i { color: var(--faint);
  font-style: normal; }
.value { overflow-wrap: anywhere; min-width: 8rem; }
.strip { display: grid; gap: 0.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(12rem, 46%), 1fr)); }
img { width: 100%; height: auto; display: block; border-radius: 3px; }
.gone { border: 1px dashed var(--line); border-radius: 3px; padding: 1.4rem
  0.6rem; text-align: center; }
.frames { display: flex; flex-wrap: wrap; gap: 2px; }
.frames img { width: auto; }
.tokens span { font: 12px/1.7 ui-monospace, monospace; white-space: pre-wrap;
  border-radius: 2px; padding: 1px; margin: 1px; }
.prompt { background: #3b82f644; } .supervised { background: #16a34a44; }
.unsupervised { background: #f9731644; } .caption { background: #16a34a44; }
.start { background: var(--ink); color: var(--paper); }
.padding { background: var(--line); }
details { margin: 0.7rem 0; } summary { cursor: pointer; }
@media print { .card, figure { break-inside: avoid; } }
"""


# A browser that finds anything to fetch refuses, and says so.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(title: str, sections: Sequence[str]) -> str:
  """Returns the whole page."""
  return (
    '<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8">'
    f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>{escaped(title)}</title>\n<style>{_STYLE}</style></head>\n"
    f"<body>\n<h1>{escaped(title)}</h1>\n{''.join(sections)}</body>\n</html>\n"
  )


def table(
  headings: Sequence[str], rows: Sequence[Sequence[str]], kind: str = ""
) -> str:
  """Returns a table of HTML cells.

  Args:
    headings: of the columns.
    kind: class of all columns but the first: "number", "score" or "value".
  """
  style = f' class="{kind}"' if kind else ""

  def line(tag, cells):
    first, *others = cells
    rest = (f"<{tag}{style}>{cell}</{tag}>" for cell in others)
    return f"<tr><{tag}>{first}</{tag}>{''.join(rest)}</tr>"

  body = "".join(line("td", row) for row in rows)
  return (
    f'<div class="scroll"><table><thead>{line("th", headings)}</thead>'
    f"<tbody>{body}</tbody></table></div>"
  )


def colour(i: int) -> str:
  """Returns the colour of a run, by its number."""
  return run_curves.COLOURS[i % len(run_curves.COLOURS)]


def dot(i: int) -> str:
  """Returns a spot of the colour of a run."""
  return f'<span class="dot" style="background: {colour(i)}"></span>'


def number(value: Any) -> str:
  """Returns four digits of a number, and any other value as `escaped`."""
  return f"{value:.4g}" if isinstance(value, int | float) else escaped(value)


def as_json(value: Any) -> str:
  """Returns a value of a config, shortened; None is empty."""
  found = "" if value is None else json.dumps(value, ensure_ascii=False)
  return escaped(messages.shown(found))


def url(picture: Image.Image) -> str:
  """Returns the address of a picture that holds it, as JPEG."""
  file = io.BytesIO()
  picture.save(file, "JPEG", quality=80)
  return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def escaped(value: Any) -> str:
  """Returns any text on one line as HTML, a long one shortened."""
  return html.escape(messages.one_line(value) if str(value) else "")
