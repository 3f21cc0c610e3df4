"""HTML of the report: one file, no links to others, readable on a phone."""

import base64
import html
from pathlib import Path

import pandas as pd

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
td.long { white-space: normal; min-width: 14rem; }
pre { background: #f5f5f5; padding: .7rem; overflow-x: auto; font-size: .8rem; }
.finding { border-left: 4px solid #999; padding: .1rem 0 .1rem .8rem; margin: 1rem 0; }
.finding p { margin: .2rem 0; overflow-wrap: anywhere; }
.appears { border-color: #009E73; } .part { border-color: #E69F00; }
.absent { border-color: #D55E00; } .bad { color: #b00020; font-weight: 600; }
"""


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


def code(text: str) -> str:
  return f"<pre>{html.escape(text)}</pre>"


def image(png: bytes, alt: str) -> str:
  data = base64.b64encode(png).decode()
  return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


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
  """A table of texts (left) and numbers (right); missing values are blank."""

  def cell(value, tag="td"):
    if isinstance(value, str):
      kind = "text long" if len(value) > 40 else "text"
      return f'<{tag} class="{kind}">{html.escape(value)}</{tag}>'
    return f"<{tag}>{html.escape(number(value))}</{tag}>"

  texts = {c for c in frame if frame[c].map(lambda v: isinstance(v, str)).any()}
  head = "".join(
    f"<th{' class=text' if c in texts else ''}>{html.escape(c)}</th>" for c in frame
  )
  rows = "\n".join(
    "<tr>" + "".join(cell(v) for v in row) + "</tr>"
    for row in frame.itertuples(index=False)
  )
  return f'<div class="wide"><table><tr>{head}</tr>\n{rows}</table></div>'


def number(value) -> str:
  """Blank for missing; thousands set apart; four significant digits below them."""
  if value is None or pd.isna(value):
    return ""
  if float(value).is_integer() and abs(value) < 1e15:
    return f"{int(value):,}"
  return f"{value:.3g}" if abs(value) >= 1e4 else f"{value:.4g}"
