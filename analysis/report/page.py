"""HTML of the report: one file, no links to others, readable on a phone."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis.curves.result import number

_STYLE = "\n" + Path(__file__).with_name("page.css").read_text()

LONG = 40  # characters of a text that does not fit into a column


def page(title: str, body: list[str], style: str = "", policy: str = "") -> str:
  """A whole document.

  Args:
    title: of the page.
    body: HTML.
    style: more of it, after that of all pages.
    policy: what the page may load (Content-Security-Policy).
  """
  if policy:
    policy = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
  return (
    f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{policy}'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>{html.escape(title)}</title><style>{_STYLE}{style}</style></head><body>\n"
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


def bars(heights: Sequence[float], labels: Sequence[str], title: str) -> str:
  """A bar chart, drawn in the colours of the page.

  Args:
    heights: of the bars, none negative; the highest is written out.
    labels: of the bars; of many, some are shown.
    title: what is counted.
  """
  width, height, left, foot = 360, 120, 4, 18
  top, step = max(heights, default=0), (width - 2 * left) / max(len(heights), 1)
  parts = []
  for i, value in enumerate(heights):
    tall = value / top * (height - foot - 16) if top else 0
    box = f'x="{left + i * step:.2f}" y="{height - foot - tall:.2f}"'
    said = html.escape(f"{labels[i]}: {number(value)}")
    parts.append(
      f'<rect {box} width="{max(step - 1, 0.5):.2f}" height="{tall:.2f}">'
      f"<title>{said}</title></rect>"
    )
  for i in range(0, len(labels), max(1, -(-len(labels) // 8))):
    x, y = left + (i + 0.5) * step, height - 4
    text = html.escape(labels[i])
    parts.append(f'<text x="{x:.2f}" y="{y}" text-anchor="middle">{text}</text>')
  if len(heights):
    at = left + (list(heights).index(top) + 0.5) * step
    anchor = "start" if at < 30 else "end" if at > width - 30 else "middle"
    parts.append(
      f'<text x="{at:.2f}" y="11" text-anchor="{anchor}">{number(top)}</text>'
    )
  name = html.escape(title)
  return (
    f'<figure class="bars"><figcaption>{name}</figcaption>'
    f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{name}">'
    f'<line x1="0" x2="{width}" y1="{height - foot}" y2="{height - foot}"/>'
    f"{''.join(parts)}</svg></figure>"
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
