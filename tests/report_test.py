"""analysis.report and its findings on studies whose answer is known."""

import collections
import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import report
from analysis.curves import fit as fit_module
from analysis.report import page
from analysis.report.style import Plot
from analysis.runs.load import save_json
from tests import synthetic


@pytest.fixture(scope="module")
def study(tmp_path_factory):
  return synthetic.write_study(
    tmp_path_factory.mktemp("report") / "w", sizes=("xs", "s", "m", "l", "xl"),
    failed=("discrete-raster-xl",), unfinished=("continuous-raster-s",),
  )  # fmt: skip


@pytest.fixture(scope="module")
def html(study):
  return report.write(study).read_text()


def test_the_page_stands_alone(html, study):
  assert html.count("data:image/png;base64,") == 13
  assert not re.search(r'(src|href)="(?!data:|#)', html)
  assert 'name="viewport"' in html
  for suffix in ("png", "svg", "csv"):
    assert len(list((study / "report/figures").glob(f"*.{suffix}"))) == 13
  assert {p.stem for p in (study / "report/tables").glob("*.csv")} == {
    "results", "sizes", "fits", "trends", "correlations", "systems", "runs", "evals",
    "goodput",
  }  # fmt: skip


def test_the_page_says_how_the_runs_stand(html):
  assert "18 of 20 runs finished." in html
  assert "discrete-raster-xl is failed: exit status 3: error: no luck" in html
  assert "continuous-raster-s is interrupted at step 50" in html
  assert "python -m fluid.train --workdir=discrete-raster-xl" in html


def test_tables(study, html):
  results = pd.read_csv(study / "report/tables/results.csv")
  assert {"N", "val loss", "nats/image", "GenEval", "KID-EffNet", "s/image"} <= set(
    results
  )
  sizes = pd.read_csv(study / "report/tables/sizes.csv")
  assert sizes["tokenizer"].unique() == [777] and "text encoder" in sizes
  goodput = pd.read_csv(study / "report/tables/goodput.csv").set_index("run")
  assert goodput.loc["continuous-random-s"].to_dict() == {
    "goodput": 0.75, "compile": 0.15, "saves": 0.1,
  }  # fmt: skip
  assert "<td>0.75</td>" in html
  fits = pd.read_csv(study / "report/tables/fits.csv")
  fits = fits[(fits.form == "power") & (fits.x == "N")].set_index("cell")
  assert fits.loc["continuous-random", "a"] == pytest.approx(0.05, rel=1e-3)
  assert (
    fits.loc["continuous-raster", "points"] == 4
  )  # the unfinished run is not fitted
  correlations = pd.read_csv(study / "report/tables/correlations.csv")
  assert set(correlations.metric) == {"geneval/overall", "kid", "fd"}
  systems = pd.read_csv(study / "report/tables/systems.csv").set_index("model")
  assert systems.loc["Fluid 10.5B", "FID-30K"] == 6.16
  assert systems.loc["continuous-random", "where"] == "ours, shapes"
  assert "<td>1,000,000</td>" in html


def test_published_rows_are_fitted_beside_ours(study):
  trends = pd.read_csv(study / "report/tables/trends.csv").set_index(["who", "metric"])
  n = np.log10([0.369e9, 0.665e9, 1.1e9, 3.1e9, 10.5e9])
  fid = trends.loc[("Fluid, published", "fid_30k")]
  r = np.corrcoef(n, [7.23, 6.84, 6.59, 6.41, 6.16])[0, 1]
  assert fid["Pearson r with log N"] == pytest.approx(r)
  slope = np.polyfit(n, np.log([7.23, 6.84, 6.59, 6.41, 6.16]), 1)[0]
  assert f"10x N -> fid_30k x {np.exp(slope):.3f}" in fid["reading"]
  geneval = trends.loc[("Fluid, published", "geneval/overall")]
  r = np.corrcoef(n, [0.62, 0.65, 0.67, 0.70, 0.69])[0, 1]
  assert geneval["Pearson r with log N"] == pytest.approx(r)
  assert {"continuous-random", "discrete-raster"} <= {who for who, _ in trends.index}


def test_a_study_without_geneval_and_with_one_size(tmp_path):
  root = synthetic.write_study(tmp_path / "emoji", sizes=("m",), geneval=False)
  html = report.write(root, tmp_path / "out").read_text()
  assert "No run has geneval/overall: left out below." in html
  assert "no fit: only 1 different value of N" in html
  assert (tmp_path / "out/figures/metrics_vs_size.png").exists()
  assert not (root / "report").exists()


def test_metrics_of_each_cell_and_those_whose_weights_are_missing(
  tmp_path, monkeypatch
):
  """As fluid.evaluate --protocol=toy leaves them."""
  root = synthetic.write_study(tmp_path / "w", sizes=("s", "m"))
  needs = "network 'Inception' needs pt_inception-2015-12-05-6726825d.pth (no file)"
  for number, folder in enumerate(sorted((root / "runs").iterdir())):
    value = 0.125 + number / 1000
    of = {"images": 384, "features": "EffNet", "width": 1280, "step": 100}
    kid = {"metric": "kid@EffNet", "value": value, "lo": 0.1, "hi": 0.2} | of
    fid = {"metric": "fid", "value": None, "missing": needs, "step": 100}
    few = fid | {"metric": "precision_recall", "missing": "too few images"}
    content = {"step": 100, "weights": "ema", "values": {}, "records": [kid, fid, few]}
    (folder / "eval").mkdir()
    (folder / "eval" / "100-ema-toy.json").write_text(json.dumps(content))
  shutil.copy(next(root.glob("runs/*/samples/*.png")), tmp_path / "any.png")
  monkeypatch.setattr(Plot, "save", lambda plot, folder: tmp_path / "any.png")
  html = report.write(root, tmp_path / "out").read_text()
  table = pd.read_csv(tmp_path / "out/tables/metrics.csv").set_index("metric")
  cells = [f"{t}-{o}, m" for t, o in synthetic.CELLS]
  assert set(cells) <= set(table) and not any(c.endswith(", s") for c in table)
  assert (table.loc["fid", cells] == "weights missing").all()
  assert (table.loc["precision_recall", cells] == "not measured").all()
  assert table.loc["kid@EffNet", cells[0]] == "0.125 [0.1, 0.2]"
  assert html.count("weights missing</td>") == 4 and "384" in html
  assert "the record in eval/ says where its authors publish it" in html


def test_a_study_that_has_only_just_begun(tmp_path):
  root = synthetic.write_study(tmp_path / "w", sizes=())
  (root / "sweep.json").write_text(
    '[{"name": "a", "kind": "run", "cell": "discrete-random", "status": "waiting"}]'
  )
  html = report.write(root).read_text()
  assert "0 of 1 runs finished." in html and "a is waiting" in html


def test_command_line_on_committed_results(tmp_path):
  root = synthetic.write_study(tmp_path / "w", sizes=("m",), geneval=False)
  save_json(root, tmp_path / "results")
  argv = [sys.executable, "-m", "analysis.report", f"--workdir={tmp_path}/results"]
  out = subprocess.run(
    [*argv, f"--out={tmp_path}/out"],
    cwd=Path(__file__).parents[1], capture_output=True, text=True,
  )  # fmt: skip
  assert out.returncode == 0 and out.stderr == ""
  assert "discrete-raster" in out.stdout and "0.6083" in out.stdout
  assert "4 of 4 runs finished." in out.stdout
  assert f"report: {tmp_path / 'out/index.html'}" in out.stdout
  html = (tmp_path / "out/index.html").read_text()
  assert "No run has written samples here." in html


def test_a_report_reads_every_file_once_and_makes_every_fit_once(tmp_path, monkeypatch):
  root = synthetic.write_study(tmp_path / "w", sizes=("xs", "l"))
  (root / "runs/discrete-random-l/eval").mkdir()
  read, fitted = collections.Counter(), collections.Counter()
  open_file, fit_points = Path.open, fit_module.fit_points

  def counted_open(path, *args, **kwargs):
    read[path] += path.is_relative_to(root) and "r" in (args or ("r",))[0]
    return open_file(path, *args, **kwargs)

  def counted_fit(x, y, **options):
    asked = {k: np.array(v).tolist() for k, v in options.items()}
    fitted[repr((np.array(x).tolist(), np.array(y).tolist(), asked))] += 1
    return fit_points(x, y, **options)

  shutil.copy(next(root.glob("runs/*/samples/*.png")), tmp_path / "any.png")
  monkeypatch.setattr(Plot, "save", lambda plot, folder: tmp_path / "any.png")
  monkeypatch.setattr(Path, "open", counted_open)
  monkeypatch.setattr(fit_module, "fit_points", counted_fit)
  report.write(root, tmp_path / "out")
  read = +read
  assert set(read.values()) == {1}
  names = collections.Counter(path.name for path in read)
  assert names["metrics.jsonl"] == names["config.json"] == names["model.json"] == 8
  assert names["sweep.json"] == 1
  # Two fits in N, two in compute, two in both; the envelope; KID and GenEval in N and
  # in compute, and the loss that orders share.
  assert set(fitted.values()) == {1} and len(fitted) == 2 + 4 * 12
  # The command does not do it again.
  read.clear(), fitted.clear()
  monkeypatch.setattr(sys, "argv", ["report", f"--workdir={root}", f"--out={tmp_path}"])
  importlib.import_module("analysis.report.report").main()
  assert set((+read).values()) == {1} and set(fitted.values()) == {1}


def test_text_is_escaped_and_numbers_are_short():
  frame = pd.DataFrame({"a": ["<b>"], "n": [1234567.0], "x": [0.123456], "m": [None]})
  table = page.table(frame)
  assert "&lt;b&gt;" in table and "<td>1,234,567</td><td>0.1235</td><td></td>" in table
