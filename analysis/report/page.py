"""HTML of the report: one file, no links to others, readable on a phone."""

import base64
import html
from pathlib import Path

import pandas as pd

from analysis.curves.result import number

_STYLE = "\n" + Path(__file__).with_name("page.css").read_text()

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
