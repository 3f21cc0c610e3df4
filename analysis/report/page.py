"""HTML of the report: one file, no links to others, readable on a phone."""

import base64
import html
from pathlib import Path

import pandas as pd

from analysis.curves.result import number

_STYLE = """
:root { color-scheme: light; --line: #ddd; --soft: #666; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; }
figure { margin: 1rem 0 2rem; }
figcaption, .soft { color: var(--soft); font-size: .9rem; }
img { max-width: 100%; height: auto; display: block; }
.wide { overflow-x: auto; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; font-size: .85rem; white-space: nowrap; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line);
  text-align: right; }
th { border-bottom-width: 2px; } td.text, th.text { text-align: left; }
tr.above td { border-bottom: 0; padding-bottom: 0; }
td.below { white-space: normal; text-align: left; color: var(--soft); }
td.below div { position: sticky; left: 0; max-width: min(calc(100vw - 2.5rem), 58rem); }
summary { cursor: pointer; }
pre { background: #f5f5f5; padding: .7rem; overflow-x: auto; font-size: .8rem; }
.finding { border-left: 4px solid #999; padding: .1rem 0 .1rem .8rem; margin: 1rem 0; }
.finding p { margin: .2rem 0; overflow-wrap: anywhere; }
.appears { border-color: #009E73; } .part { border-color: #E69F00; }
.absent { border-color: #D55E00; } .bad { color: #b00020; font-weight: 600; }
"""

LONG = 40  # characters of a text that does not fit into a column


def page(title: str, body: list[str]) -> str:
  """A whole document."""
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>\n"
    f"<h1>{html.escape(title)}</h1>\n" + "\n".join(body) + "\n</body></html>\n"
  )


def section(title: str) -> str:
  return f"<h2>{html.escape(title)}</h2>"


def paragraph(text: str, kind: str = "") -> str:
  return f'<p class="{kind}">{html.escape(text)}</p>'


def folded(title: str, lines: list[str]) -> str:
  """Lines that are shown when asked for."""
  items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
  return (
    f'<details class="soft"><summary>{html.escape(title)}</summary>'
    f"<ul>{items}</ul></details>"
  )


def code(text: str) -> str:
  return f"<pre>{html.escape(text)}</pre>"


def image(png: bytes, alt: str) -> str:
  """A picture that is scrolled, not shrunk, where its letters would get too small."""
  data = base64.b64encode(png).decode()
  inches = int.from_bytes(png[16:20], "big") / 150  # width, in the file's header
  style = f"width:{100 * inches:.0f}px; min-width:{75 * inches:.0f}px"
  source = f"data:image/png;base64,{data}"
  return f'<img style="{style}" alt="{html.escape(alt)}" src="{source}">'


def figure(png: Path, title: str, caption: str, command: str = "") -> str:
  """A figure with its caption, and how to draw it again."""
  again = f"<details><summary>draw it again</summary>{code(command)}</details>"
  return (
    f'<figure id="{png.stem}"><h3>{html.escape(title)}</h3>'
    f'<div class="wide">{image(png.read_bytes(), title)}</div>'
    f"<figcaption>{html.escape(caption)}{again if command else ''}</figcaption>"
    "</figure>"
  )


def table(frame: pd.DataFrame) -> str:
  """A table of texts (left) and numbers (right); missing values are blank.

  A column of long texts goes below its row, over the whole width: on a phone it would
  be a tower of words.
  """
  texts = {c for c in frame if frame[c].map(lambda v: isinstance(v, str)).any()}
  long = [c for c in texts if frame[c].map(lambda v: len(str(v))).max() > LONG]
  short = [c for c in frame if c not in long]
  head = "".join(
    f"<th{' class=text' if c in texts else ''}>{html.escape(c)}</th>" for c in short
  )
  rows = []
  for row in frame.to_dict("records"):
    kind = " class=above" if long else ""
    rows.append(f"<tr{kind}>{''.join(_cell(row[c]) for c in short)}</tr>")
    for c in long:
      words = f"<div>{html.escape(str(row[c]))}</div>"
      rows.append(f'<tr><td class="below" colspan="{len(short)}">{words}</td></tr>')
  body = "\n".join(rows)
  return f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>'


def _cell(value) -> str:
  if isinstance(value, str):
    return f'<td class="text">{html.escape(value)}</td>'
  return f"<td>{html.escape(number(value))}</td>"
