"""The four cells at three sizes on real captioned drawings, 64 px, beside toy_study.

20,000 drawings in six styles (source iconify, fetched by npm), read with MiniLM's text
features (requirements-minilm.txt). docs/study.md says what it takes.
"""

from configs import toy


def sweep():
  yield from toy.cells(("xs", "s", "m"), {"steps": 5000}, data="iconify", text="minilm")
