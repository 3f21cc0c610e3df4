"""Command lines of the analysis, what they say of bad tables, and names that stay."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import coverage
from analysis.command import fit_main, plan_main, run
from analysis.report.plots import main as plots_main
from analysis.report.report import main as report_main
from analysis.runs.load import main as load_main

ROOT = Path(__file__).parents[1]
X = np.geomspace(1e5, 3e6, 6)
MAINS = {
  "fit": fit_main, "plan": plan_main, "load": load_main, "report": report_main,
  "coverage": coverage.main,
}  # fmt: skip


def test_fit_prints_writes_and_says_what_is_wrong(tmp_path):
  table = pd.DataFrame({"size": X, "loss": (1e3 / X) ** 0.25 * [1, 1, 1, 1, 1, 5]})
  table.loc[6] = [X[-1], (1e3 / X[-1]) ** 0.25]
  table.to_csv(tmp_path / "t.csv", index=False)

  def call(*more):
    argv = [sys.executable, "-m", "analysis.fit", f"--csv={tmp_path}/t.csv"]
    argv += ["--n=size", "--loss=loss", *more]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)

  out = call("--drop-largest=1", f"--json={tmp_path}/f.json")
  assert "a         0.25" in out.stdout and out.stderr == ""
  assert json.loads((tmp_path / "f.json").read_text())["params"]["a"] == (
    pytest.approx(0.25)
  )
  bad = call("--compute=flops")
  message = "error: " + f"{tmp_path}/t.csv has no column 'flops'; it has size, loss\n"
  assert (bad.returncode, bad.stderr) == (2, message)
  refused = call("--form=bnsl")
  assert refused.returncode == 2 and "6 parameters need 8" in refused.stderr


@pytest.mark.parametrize("command", ["fit", "plan"])
@pytest.mark.parametrize(
  "name, text, missing",
  [
    ("header.csv", "N,D,val/loss\n", "has no rows; its columns: N, D, val/loss"),
    ("celled.csv", "cell,N,val/loss\n", "has no rows; its columns: cell, N, val/loss"),
    ("empty.csv", "", "is empty: it has neither columns nor rows"),
    ("empty.jsonl", "", "is empty: it has neither columns nor rows"),
    ("empty.json", "", "is empty: it has neither columns nor rows"),
    ("list.json", "[]", "has no rows; its columns: none"),
    (
      "other.csv",
      "size,L\n1,2\n",
      "has no column 'N'; it has size, L; name yours by --n",
    ),
    (
      "semi.csv",
      "size;L\n1M;2,5\n",
      "has no column 'N'; it has size, L; name yours by --n",
    ),
    ("semi_empty.csv", "N;D\n", "has no rows; its columns: N, D"),
  ],
)
def test_a_table_without_rows_or_columns_is_named(
  command, name, text, missing, tmp_path, monkeypatch, capsys
):
  (tmp_path / name).write_text(text)
  argv = [command, f"--csv={tmp_path / name}"]
  argv += ["--budget=1e13"] if command == "plan" else ["--drop-largest=0"]
  monkeypatch.setattr(sys, "argv", argv)
  with pytest.raises(SystemExit) as stopped:
    run(fit_main if command == "fit" else plan_main)
  assert stopped.value.code == 2
  assert capsys.readouterr() == ("", f"error: {tmp_path / name} {missing}\n")


BUDGETS = "analysis/results/toy_budgets"


@pytest.mark.parametrize(
  "command, arguments, said",
  [
    ("fit", "--draws=0", "argument --draws: 0 is too few; at least 1"),
    ("fit", "--drop-largest=-2", "--drop-largest: -2 is too few; at least 0"),
    ("fit", "--seed=-1", "--seed: -1 is too few; at least 0"),
    ("fit", "--hold-out=nan", "--hold-out: nan is not a positive number"),
    ("fit", "--fix=a=nan", "error: cannot fix a at nan: it has to be finite"),
    ("fit", "--form=power_floor --fix=E=-1", "fix E at -1: it has to be positive"),
    ("fit", "--json=/", "error: /: Is a directory"),
    ("plan", "--budget=-1", "--budget: -1 is not a positive number"),
    ("plan", "--budget=inf", "--budget: inf is not a positive number"),
    ("plan", "--budget=1 --around=-5", "--around: -5 is not a positive number"),
    ("plan", "--budget=1 --sizes=0", "--sizes: 0 is too few; at least 1"),
    ("plan", f"--score={BUDGETS}/runs.json", "predicts no losses; write it with"),
    ("plan", "--score=README.md", "error: README.md is no prediction: Expecting"),
    ("coverage", "--studies=0", "--studies: 0 is too few; at least 1"),
    ("load", "--csv=/nonexistent/a.csv", "non-existent directory: '/nonexistent'"),
    ("report", "--out=README.md", "error: README.md/figures: Not a directory"),
  ],
)
def test_what_makes_no_sense_is_one_line(command, arguments, said, monkeypatch, capsys):
  monkeypatch.chdir(ROOT)
  main = MAINS[command]
  table = [] if command == "coverage" else [f"--workdir={BUDGETS}"]
  monkeypatch.setattr(sys, "argv", [command, *table, *arguments.split()])
  with pytest.raises(SystemExit) as stopped:
    run(main)
  assert stopped.value.code == 2
  lines = capsys.readouterr().err.splitlines()
  assert said in lines[-1] and not [x for x in lines if "Traceback" in x]


@pytest.mark.parametrize("form", ["isoflop", "chinchilla"])
def test_fit_and_plan_read_numbers_as_people_write_them(
  form, tmp_path, monkeypatch, capsys
):
  x = coverage.isoflop_grid(np.geomspace(1e18, 1e21, 6))
  loss = coverage.chinchilla(x[0], x[1] / 6 / x[0], **coverage.CHINCHILLA)
  plain = pd.DataFrame({"N": np.round(x[0]), "C": x[1], "loss": loss})
  plain.to_csv(tmp_path / "plain.csv", index=False)
  human = plain.assign(N=[f"{n:,.0f}" if n < 1e9 else f"{n / 1e9}B" for n in plain.N])
  human.to_csv(tmp_path / "human.csv", index=False, sep=";")
  for command, main in (("fit", fit_main), ("plan", plan_main)):
    said = []
    for name in ("plain", "human"):
      argv = [command, f"--csv={tmp_path / name}.csv", "--compute=C", "--loss=loss"]
      argv += [f"--form={form}", "--draws=20", "--starts=20"]
      argv += ["--budget=1e22"] if command == "plan" else []
      monkeypatch.setattr(sys, "argv", argv)
      run(main)
      said.append(capsys.readouterr().out)
    assert said[0] == said[1] and "0.514" in said[0]


def _run(monkeypatch, capsys, main, *argv):
  monkeypatch.setattr(sys, "argv", ["x", *map(str, argv)])
  try:
    run(main)
  except SystemExit:
    pass
  return capsys.readouterr()


def test_own_tables_are_told_what_they_lack_and_lose(tmp_path, monkeypatch, capsys):
  path = tmp_path / "t.csv"
  n = np.geomspace(1e5, 3e7, 12)
  table = pd.DataFrame({"N": n, "compute": np.tile([1e15, 1e17], 6), "L": 3 - n / 1e8})
  table.to_csv(path, index=False)
  call = lambda *argv: _run(monkeypatch, capsys, fit_main, "--csv", path, *argv)
  assert (
    "no column 'val/loss'; it has N, compute, L, D; name yours by --loss" in call().err
  )
  assert "12 points" in call("--loss=L", "--form=chinchilla", "--draws=20").out  # no D
  given = table.assign(D=1.0)
  given.to_csv(path, index=False)
  said = call("--loss=L", "--compute=compute", "--form=chinchilla").err
  assert "only 1 different value of D" in said  # which counts where it is given
  table["L"] = table["L"].where(table.index != 3)
  table.assign(cell=["A"] * 10 + [None] * 2).to_csv(path, index=False)
  said = call("--loss=L").out
  assert "left out, no finite val/loss: row 4" in said
  assert "no cell: no fit: 2 runs" in said


def test_figures_of_a_table_without_runs_are_refused(tmp_path, monkeypatch, capsys):
  (tmp_path / "t.csv").write_text("cell,N,val/loss\nA,1M,2\n")
  said = _run(monkeypatch, capsys, plots_main, "--workdir", tmp_path / "t.csv").err
  assert "has no column 'run'; it has cell, N, val/loss" in said


def test_a_plan_around_a_guess_says_only_what_it_knows(monkeypatch, capsys):
  table = ROOT / "analysis/results/toy_budgets"
  argv = ["--workdir", table, "--around=6e4", "--budget=1e12"]
  said = _run(monkeypatch, capsys, plan_main, *argv).out
  assert "N* = 6e+04, D* = " in said and "nan" not in said and "loss" not in said


def test_hold_out_and_drop_largest_are_of_each_cell(tmp_path, monkeypatch, capsys):
  """Of cells with 26 and 6 FLOPs per parameter and token, and other units of loss."""
  n, d = coverage.PLANTS["chinchilla"].study(np.random.default_rng(0))["x"]
  loss = coverage.chinchilla(n, d, **coverage.CHINCHILLA)
  cells = [
    pd.DataFrame({"cell": cell, "N": n, "D": d, "compute": k * n * d, "val/loss": u})
    for cell, k, u in (("masked", 26, loss / 10), ("causal", 6, loss))
  ]
  pd.concat(cells).to_csv(tmp_path / "t.csv", index=False)

  def held(*more):
    argv = ["fit", f"--csv={tmp_path}/t.csv", "--form=chinchilla", "--json=-"]
    argv += ["--intervals=none", "--starts=20", "--drop-largest=3", *more]
    monkeypatch.setattr(sys, "argv", argv)
    run(fit_main)
    return json.loads(capsys.readouterr().out)

  limit = float(np.sort(6 * n * d)[80]) * 1.001
  for f, k in zip(held(f"--hold-out={limit}"), (26, 6)):
    assert f["n"] == len(n) - 3
    assert len(f["held_out"]["actual"]) == (k * n * d > limit).sum()
  one, two = held("--hold-out=1e30")
  assert one["held_out"] is two["held_out"] is None
  assert (
    one["warnings"]
    == two["warnings"]
    == ["nothing is held out: no point is above the limit asked for"]
  )


COMMANDS = [
  file.relative_to(ROOT / "analysis").parts[0].removesuffix(".py")
  for file in sorted((ROOT / "analysis").rglob("*.py"))
  if '\nif __name__ == "__main__":' in file.read_text()
]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_no_warning(name):
  argv = [sys.executable, "-W", "error", "-m", f"analysis.{name}", "--help"]
  out = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
  assert (out.returncode, out.stderr) == (0, "")
  assert out.stdout.startswith(f"usage: python -m analysis.{name}")


def test_names_of_functions_stay_functions_whatever_is_imported():
  code = (
    "from analysis.fit import fit_points; from analysis.load import CELLS; import sys;"
    "import analysis.curves.fit, analysis.runs.load, analysis; "
    "assert analysis.fit is analysis.curves.fit.fit; "
    "assert analysis.load is analysis.runs.load.load; "
    "from analysis import coverage, samples, tables; "
    "from analysis.figures.study import TAGS, Study; "
    "from analysis.figures.published import fits; "
    "from analysis.figures import FIGURES; import analysis.report; "
    "assert Study is analysis.report.study.Study"
  )
  subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True)
