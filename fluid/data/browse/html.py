"""A look at a data set as one HTML page, which loads nothing and runs nothing.

Captions and meta are whatever somebody wrote: all of it is escaped, characters that do
not print or turn the direction of text are spelled out, and the page's policy forbids
scripts and addresses.
"""

import base64
import bisect
import html
import io
import json
import pathlib
import re
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from analysis.report import page
from fluid import config
from fluid.data.browse.look import Example, Look

_STYLE = pathlib.Path(__file__).with_name("page.css").read_text("utf-8")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
LONGEST = 2000  # Characters of a text that are shown.
BINS = 24


def render(run: config.Run, split: str, found: Look, command: Sequence[str]) -> str:
  """The page.

  Args:
    run, split: what was looked at.
    found: there.
    command: that makes the page.
  """
  body = [page.paragraph(note, "bad") for note in found.notes]
  body += [page.section("What it is"), *_summary(run, split, found)]
  body += [page.section("Examples")]
  body += [page.paragraph(_legend(found), "soft")]
  body += ['<div class="grid">']
  body += [_example(e, run.text.length, found) for e in found.examples]
  body += ["</div>", page.section("Lengths and sizes"), *_charts(found)]
  body += [page.section("Rejected"), *_rejects(split, found)]
  if found.tokens.codes is not None:
    body += [page.section("Codebook"), *_codebook(found)]
  if found.tokens.moments is not None:
    body += [page.section("Moments"), *_moments(found)]
  body += [page.section("How to make this again"), page.code(shlex.join(command))]
  title = f"{run.data.source.kind}, {split}"
  return page.page(title, body, _STYLE, _POLICY)


def shown(text: str) -> str:
  """Hostile text as HTML that shows every character it has."""
  rest = len(text) - LONGEST
  out = html.escape("".join(map(_visible, text[:LONGEST])))
  return out + (f" <i>and {rest:,} characters more</i>" if rest > 0 else "")


def _visible(letter: str) -> str:
  # A joiner holds emoji together; whatever else does not print could hide something.
  if letter.isprintable() or letter in "\n\u200d":
    return letter
  return f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else f"\\U{ord(letter):08x}"


def marked(prompt: str, length: int, vocabulary: Any) -> str:
  """A prompt as HTML, with words that the vocabulary does not know, or that are cut."""
  pieces = getattr(vocabulary, "vocabulary", vocabulary)
  if not hasattr(pieces, "unknown"):  # Of classes, or no vocabulary.
    return shown(prompt)
  head = prompt[:LONGEST]
  parts = re.findall(r"\s*\S+\s*", head) or [head]
  ends = np.cumsum([len(part) for part in parts]).tolist()
  whole = bisect.bisect_right(ends, length, key=lambda end: pieces.count(prompt[:end]))
  out = []
  for i, part in enumerate(parts):
    kinds = ["unknown"] * bool(pieces.unknown(part)) + ["cut"] * (i >= whole)
    text = shown(part)
    out.append(f'<span class="{" ".join(kinds)}">{text}</span>' if kinds else text)
  return "".join(out) + shown(prompt)[len(shown(head)) :]


def _png(image: np.ndarray, alt: str) -> str:
  file = io.BytesIO()
  Image.fromarray(image).save(file, "PNG")
  data = base64.b64encode(file.getvalue()).decode()
  return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def _picture(image: np.ndarray | None, name: str) -> str:
  if image is None:
    return ""
  return f"<figure>{_png(image, name)}<figcaption>{name}</figcaption></figure>"


def _line(name: str, text: str) -> str:
  return f'<p><b>{name}</b> <span class="text" dir="auto">{text}</span></p>'


def _example(e: Example, length: int, found: Look) -> str:
  out = ['<div class="example">']
  pictures = _picture(e.image, "source"), _picture(e.again, "tokens, decoded")
  if any(pictures):
    out.append(f'<div class="pair">{"".join(pictures)}</div>')
  if e.bad:
    out.append(f'<p class="bad">{shown(e.why)}</p>')
  elif e.why:
    out.append(f'<p class="soft">no pixels: {shown(e.why)}</p>')
  prompt = e.prompt or e.caption
  if not e.bad:
    out.append(_line("prompt", marked(prompt, length, found.vocabulary)))
    if e.caption and e.caption != prompt:
      out.append(_line("caption", shown(e.caption)))
  if e.ids is not None:
    said = re.sub(r"⁇|\[UNK\]", r'<span class="unknown">\g<0></span>', shown(e.said))
    out.append(_line("the model gets", said))
  if e.others:
    lines = "".join(f"<li>{shown(other)}</li>" for other in e.others)
    out.append(
      f"<details><summary>Its other captions ({len(e.others)})</summary>"
      f"<ul>{lines}</ul></details>"
    )
  known = {"id": e.id} if e.id >= 0 else {}
  inner = json.dumps(known | {"meta": e.meta}, indent=1, ensure_ascii=False)
  ids = "" if e.ids is None else f"<pre>{len(e.ids)} ids: {e.ids}</pre>"
  out.append(
    f"<details><summary>example {e.index}</summary>{ids}<pre>{shown(inner)}</pre>"
    "</details></div>"
  )
  return "\n".join(out)


def _legend(found: Look) -> str:
  text = "Drawn by seed."
  if found.vocabulary is not None:
    text += (
      " Underlined words are unknown: no caption of the training split had them, or no "
      "piece spells them; words struck through are cut at text.length."
    )
  if found.tokenizer is not None:
    text += " 'Tokens, decoded' is the best that a model of these tokens can draw."
  return text


def _summary(run: config.Run, split: str, found: Look) -> list[str]:
  data, metadata = run.data, found.metadata or {}
  rows = {"source": data.source.kind, "split": split, "examples": f"{found.total:,}"}
  rows["pixels per side"] = str(data.image_size)
  if metadata:
    here = metadata["splits"][split]
    size = sum(s["bytes"] for s in here["shards"])
    rows["cache"] = data.cache
    rows["bytes"] = f"{size:,}"
    rows["shards"] = f"{len(here['shards']):,}"
    rows["captions cut"] = f"{here.get('cut_captions', 0):,}"
  spec = metadata.get("tokens")
  if spec is None and found.tokenizer is not None:
    spec = found.tokenizer.spec.to_dict()
  if spec:
    rows["tokens"] = ", ".join(f"{k} {v}" for k, v in spec.items() if v)
    rows["tokenizer"] = run.tokenizer.path
  ids = "" if found.vocabulary is None else f", {found.vocabulary.size:,} ids"
  rows["text"] = f"{run.text.kind}{ids}, length {run.text.length}"
  facts = "".join(f"<dt>{k}</dt><dd>{shown(v)}</dd>" for k, v in rows.items())
  out = [f'<dl class="facts">{facts}</dl>']
  if made_from := metadata.get("config"):
    lines = [_plain(f"{k}: {v}") for k, v in sorted(made_from.items())]
    out.append(page.folded("Config that the cache was made of", lines))
  return out


def _plain(text: str) -> str:
  """For what escapes by itself."""
  return "".join(map(_visible, text))


def _histogram(values: Sequence[float], title: str, *, whole: bool = True) -> str:
  """Bars of at most BINS; `whole` numbers are never split."""
  low, high = min(values), max(values)
  if whole:
    step = max(1, -(-int(high - low + 1) // BINS))
    edges = np.arange(low, high + step + 1, step)
    labels = [f"{e}" for e in edges[:-1]]
  else:
    edges = np.linspace(low, max(high, low + 1e-6), (BINS if high > low else 1) + 1)
    labels = [f"{e:.2f}" for e in edges[:-1]]
  counts = np.histogram(values, edges)[0]
  if whole and len(counts) > 1 and not counts[-1]:
    counts, labels = counts[:-1], labels[:-1]
  return page.bars(counts.tolist(), labels, title)


def _charts(found: Look) -> list[str]:
  charts, notes = [], []
  if found.lengths:
    unit = "words" if found.vocabulary is None else "text tokens, ends included"
    cut = "" if found.metadata is None else ", after cutting"
    title = f"{unit}{cut}, of {len(found.lengths):,} captions"
    charts.append(_histogram(found.lengths, title))
  if found.sizes:
    sizes = np.array(found.sizes)
    of = f"of {len(sizes):,} images"
    charts.append(
      _histogram(sizes.min(1).tolist(), f"pixels of the shorter side, {of}")
    )
    charts.append(
      _histogram(
        (sizes[:, 0] / sizes[:, 1]).tolist(), f"width by height, {of}", whole=False
      )
    )
  else:
    notes.append(
      page.paragraph("The source does not say how large images are.", "soft")
    )
  return ['<div class="charts">', *charts, "</div>", *notes]


def _rejects(split: str, found: Look) -> list[str]:
  here = (found.metadata or {}).get("splits", {}).get(split, {})
  written = here.get("skipped", {}) | here.get("filtered", {})
  kinds = sorted(written.keys() | found.rejects.keys())
  if not kinds:
    return [page.paragraph(f"None of the {found.scanned:,} examples looked at.")]
  columns: dict[str, list] = {"kind": kinds}
  if found.metadata is not None:
    columns["when it was prepared"] = [written.get(kind, 0) for kind in kinds]
  columns[f"of {found.scanned:,} looked at"] = [found.rejects[kind] for kind in kinds]
  out = [page.table(pd.DataFrame(columns))]
  if found.reasons:
    reasons = [_plain(reason) for reason in found.reasons]
    out.append(page.folded(f"{len(reasons)} of them, and why", reasons))
  return out


def _codebook(found: Look) -> list[str]:
  counts = found.tokens.codes
  assert counts is not None
  total = int(counts.sum())
  if not total:
    return [page.paragraph("No tokens were read.", "soft")]
  used, perplexity = found.tokens.use()
  out = [
    page.paragraph(
      f"{used:,} of {len(counts):,} codes are used ({used / len(counts):.1%}), by "
      f"{total:,} tokens of {found.used:,} examples; perplexity {perplexity:,.1f}."
    )
  ]
  order = np.sort(counts)[::-1]
  parts = np.array_split(order, min(48, len(order)))
  first = np.cumsum([0] + [len(part) for part in parts])
  title = "tokens by rank of their code, most used first"
  out.append(
    page.bars([int(p.sum()) for p in parts], [str(f) for f in first[:-1]], title)
  )
  if found.top is not None:
    out.append(page.paragraph("The most used codes, each alone in an image:", "soft"))
    out.append('<div class="codes">')
    for code, image in zip(*found.top):
      name = f"{code}: {counts[code] / total:.1%}"
      out.append(_picture(image, name))
    out.append("</div>")
  return out


def _moments(found: Look) -> list[str]:
  assert found.tokens.moments is not None
  mean, std, posterior = found.tokens.moments
  names = [str(c) for c in range(len(mean))]
  columns = {"channel": names, "mean": mean, "std": std, "posterior std": posterior}
  body = page.table(pd.DataFrame(columns))
  return [
    page.paragraph(
      f"Of {found.used:,} examples: mean {mean.mean():.3f}, std "
      f"{np.sqrt((std**2).mean()):.3f} over all channels. A model is trained on means "
      "with as much noise as the posterior's std says."
    ),
    page.bars(std.tolist(), names, "std of the means, by channel"),
    f"<details><summary>each channel</summary>{body}</details>",
  ]
