"""The findings of several studies as one page of Markdown."""

import argparse
import shlex
from pathlib import Path, PurePosixPath

from analysis.curves.clean import need
from analysis.report.findings import Finding, findings
from analysis.report.study import Study

_HEAD = """# Findings

The paper's findings (arXiv 2410.13863), judged in each study from its finished runs.
Intervals in [brackets] are 95 %. Those of metrics are of the evaluation alone (prompts,
images, masks); how much another seed of training would move a run, only the scatter of
runs around a fitted line tells. What an interval leaves open "cannot be said", and then
the page says what would decide it, at the speed of the study's own machines.

Made by this command, to be run again when there are new results:

```bash
{command}
```
"""


def page(studies: dict[str, Study], command: str) -> str:
  """The page: a section a study (by its workdir), a block a finding."""
  lines = [_HEAD.format(command=command)]
  for workdir, study in studies.items():
    lines += _section(workdir, study)
  return "\n".join(lines).rstrip() + "\n"


def _section(workdir: str, s: Study) -> list[str]:
  found = findings(s)
  sizes = list(s.ended.get("size", []))
  text = f"{len(s.ended)} of {len(s.runs)} runs finished"
  if sizes:
    text += f", sizes {', '.join(dict.fromkeys(sizes))}"
    most = s.ended.groupby(["cell", "size"]).size().max()
    text += f", {'one run' if most == 1 else f'up to {most} runs'} a cell and size"
  lines = [f"## {PurePosixPath(workdir).name}", "", f"`{workdir}`: {text}.", ""]
  lines += ["| finding | verdict |", "|---|---|"]
  lines += [f"| {f.claim} | {f.verdict} |" for f in found.values()]
  for f in found.values():
    lines += ["", *_block(f)]
  return [*lines, ""]


def _block(f: Finding) -> list[str]:
  lines = [f"### {f.claim}: {f.verdict}", "", f"Test: {f.test}.", ""]
  lines += [f"- {line}" for line in f.evidence]
  if f.needs:
    lines += ["", "What it would take:", "", *(f"- {line}" for line in f.needs)]
  return lines


def main() -> None:
  """Entry of `python -m analysis.findings`."""
  parser = argparse.ArgumentParser(prog="python -m analysis.findings")
  parser.add_argument(
    "--workdir", action="append", required=True, help="a study; repeatable"
  )
  parser.add_argument("--out", help="file to write; otherwise it is printed")
  args = parser.parse_args()
  words = ["python", "-m", "analysis.findings"]
  words += [w for d in args.workdir for w in ("--workdir", d)]
  words += ["--out", args.out] if args.out else []
  studies = {d: Study.read(d) for d in args.workdir}
  for workdir, study in studies.items():
    need(study.runs, ("cell", "tokens", "order", "size"), workdir)
  text = page(studies, shlex.join(words))
  if not args.out:
    return print(text, end="")
  Path(args.out).write_text(text, encoding="utf-8")
  print(f"findings: {args.out}")
