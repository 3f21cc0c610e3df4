"""analysis.load: run directories, committed results and files -> tables."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis.load import TableError, save_json
from analysis.report import tables
from analysis.report.study import Study
from analysis.runs.numbers import number
from tests import synthetic

ROOT = Path(__file__).parents[1]


@pytest.fixture
def study(tmp_path):
  return synthetic.write_study(
    tmp_path / "w", sizes=("xs", "l"), failed=("discrete-raster-l",),
    unfinished=("continuous-raster-xs",),
  )  # fmt: skip


def test_one_row_per_run_with_components_and_compute(study):
  runs = analysis.load(study).set_index("run")
  assert len(runs) == 8
  row = runs.loc["continuous-random-l"]
  assert (row.cell, row.tokens, row.order) == (
    "continuous-random", "continuous", "random",
  )  # fmt: skip
  assert row.N == pytest.approx(1e6) and row.N_tokenizer == 777
  assert row.N == row.N_core + row.N_aligner + row.N_head + row.N_embeddings
  assert row.D == 100 * 8 * 64
  assert row.flops_per_image == pytest.approx(2e6 * 64)  # the tokenizer is not trained
  assert row["compute"] == pytest.approx(3 * 2e6 * 64 * 8 * 100)
  assert row["val/loss"] == pytest.approx(synthetic.loss("continuous", 1e6))
  assert row["sample/seconds_per_image"] == 0.25 and row.train_images_per_s == 123
  assert row.seed == 3 and len(row.config_hash) == 12
  assert (row.goodput, row["lost/compile"], row["lost/saves"]) == (0.75, 0.15, 0.1)
  assert runs.loc["continuous-raster-xs", "goodput"] == 0.8  # Still in metrics.jsonl.


def test_statuses_of_failed_and_interrupted_runs(study):
  runs = analysis.load(study).set_index("run")
  assert runs.loc["discrete-raster-l", "status"] == "failed"
  assert "no luck" in runs.loc["discrete-raster-l", "note"]
  assert np.isnan(runs.loc["discrete-raster-l", "val/loss"])
  assert runs.loc["continuous-raster-xs", "status"] == "interrupted"
  assert runs.loc["continuous-raster-xs", "step"] == 50
  assert "vae-1" not in runs.index


def test_one_row_per_evaluated_step(study):
  evals = analysis.load(study, "eval")
  one = evals[evals.run == "discrete-random-xs"]
  assert list(one.step) == [50, 100]
  assert one["compute"].iloc[1] == 2 * one["compute"].iloc[0]
  assert list(one["val/loss"].round(6)) == [
    round(synthetic.loss("discrete", 1e5) * f, 6) for f in (1.1, 1.0)
  ]
  assert one["time"].iloc[0] == 0 and "evals" not in one
  assert len(evals[evals.run == "continuous-raster-xs"]) == 1


def test_a_step_logged_twice_counts_once_and_the_later_wins(tmp_path):
  synthetic.write_run(tmp_path / "r", "discrete", "random", "xs")
  with open(tmp_path / "r/metrics.jsonl", "a") as f:
    f.write('\n{"step": 100, "val/loss": 0.125}\n')
  evals = analysis.load(tmp_path / "r", "eval")
  assert list(evals.step) == [50, 100] and evals["val/loss"].iloc[1] == 0.125
  assert analysis.load(tmp_path / "r")["val/loss"].item() == 0.125


def test_committed_json_reads_back_the_same(study, tmp_path):
  save_json(study, tmp_path / "json")
  for rows in ("run", "eval"):
    before = analysis.load(study, rows).drop(columns="command")
    after = analysis.load(tmp_path / "json", rows)[
      [c for c in before if before[c].notna().any()]
    ]
    before = before[after.columns]
    pd.testing.assert_frame_equal(before, after, check_dtype=False)


def test_csv_and_jsonl(tmp_path):
  table = pd.DataFrame({"N": [1, 2], "val/loss": [0.5, 0.25]})
  table.to_csv(tmp_path / "a.csv", index=False)
  table.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
  pd.testing.assert_frame_equal(analysis.load(tmp_path / "a.csv"), table)
  pd.testing.assert_frame_equal(analysis.load(tmp_path / "a.jsonl"), table)


@pytest.mark.parametrize(
  "text, value",
  [
    ("10M", 1e7), ("1.3B", 1.3e9), ("350k", 3.5e5), ("1.2T", 1.2e12), ("2G", 2e9),
    ("1e9", 1e9), ("-1.5E-3", -1.5e-3), (" 7 ", 7), (".5", 0.5), ("10 M", 1e7),
    ("1,000,000", 1e6), ("1_000_000", 1e6), ("1 000", 1e3), ("1,234.5", 1234.5),
    ("1,00", None), ("0,123", None), ("1,000_000", None), ("1.2.3", None), ("M", None),
    ("", None), ("10MB", None), ("nan", None), ("1e", None), ("12-13", None),
  ],
)  # fmt: skip
def test_numbers_as_people_write_them(text, value):
  assert number(text) == (None if value is None else pytest.approx(value, rel=1e-15))


def test_a_number_written_in_any_way_is_read_the_same():
  rng = np.random.default_rng(0)
  for value in map(float, np.round(10 ** rng.uniform(0, 14, 200))):
    ways = [
      f"{value:.0f}",
      f"{value:,.0f}",
      f"{value:_.0f}",
      f"{value!r}",
      f"{value:e}",
    ]
    ways += [f"{value / 1e3!r}K", f"{value / 1e6:.9f}m", f"{value / 1e9:.12f} B"]
    assert [number(w) for w in ways] == pytest.approx([value] * 8, rel=1e-6)
    german = f"{value / 7:,.2f}".translate(str.maketrans(",.", ".,"))
    assert number(german, ",") == round(value / 7, 2) and number(german) is None


@pytest.mark.parametrize(
  "text",
  [
    'N,loss,note\n10M,3.5,1M\n"1,300,000,000",3.25,2M\n',
    "N;loss;note\n10M;3.5;1M\n1_300_000_000;3.25;2M\n",
    "N;loss;note\n10M;3,5;1M\n1.300.000.000;3,25;2M\n",
    "N;loss;note\n10.000.000;3,500;1M\n1.300.000.000;3,25;2M\n",
    "N; loss; note\r\n10,000,000; 3.5; 1M\r\n1,300,000,000; 3.25; 2M\r\n",
    "N;loss;note\n10,000,000;3,5;1M\n1.3B;3,25;2M\n",
    "\ufeffN\tloss\tnote\n10M\t3.500\t1M\n1.3B\t3.250\t2M\n",
    '"N";"loss";"note"\n"10M";"3.5";"1M"\n"1.3b";"3.25";"2M"\n',
  ],
)
def test_tables_with_any_separator_and_decimal_sign(text, tmp_path):
  (tmp_path / "t.csv").write_text(text, "utf-8", newline="")
  table = analysis.load(tmp_path / "t.csv")
  want = {"N": [1e7, 1.3e9], "loss": [3.5, 3.25], "note": ["1M", "2M"]}
  pd.testing.assert_frame_equal(table, pd.DataFrame(want), check_dtype=False)
  assert all(pd.api.types.is_numeric_dtype(table[c]) for c in ("N", "loss"))


def test_what_can_be_read_in_two_ways_is_refused_and_what_is_no_number_left(tmp_path):
  path = tmp_path / "t.csv"
  path.write_text("N;loss\n10M;3,215\n20M;2,987\n")
  with pytest.raises(ValueError, match="'loss' has 2,987: 2987 or 2.987") as error:
    analysis.load(path)
  assert "\n" not in str(error.value)
  path.write_text("N;loss\n10M;3.215\n20M;2.987\n")
  assert list(analysis.load(path)["loss"]) == [3.215, 2.987]
  path.write_text("N,loss\n1,000,000,3.2\n2,000,000,3.1\n")
  with pytest.raises(ValueError, match="more values than the header"):
    analysis.load(path)
  path.write_text("N,loss\n10M,3.2\nbig,3.1\n")
  assert list(analysis.load(path)["N"]) == [1e7, "big"]


def test_command_line_writes_csv_and_names_what_is_missing(study, tmp_path):
  def call(*args):
    command = [sys.executable, "-m", "analysis.load", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

  good = call("--workdir", str(study), "--csv", str(tmp_path / "t.csv"))
  assert good.returncode == 0 and good.stderr == ""
  assert len(pd.read_csv(tmp_path / "t.csv")) == 8
  bad = call("--workdir", str(tmp_path / "absent"))
  assert bad.returncode == 2
  assert bad.stderr.startswith("error: no such file or folder") and (
    bad.stderr.count("\n") == 1
  )
  (tmp_path / "empty").mkdir()
  with pytest.raises(ValueError, match="holds no runs"):
    analysis.load(tmp_path / "empty")


def test_importing_analysis_does_not_import_jax():
  code = (
    "import sys, analysis, analysis.report; "
    "sys.exit(any(m in sys.modules for m in ('jax', 'tensorflow', 'fluid')))"
  )
  assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_url_reads_like_the_folder_behind_it(study, tmp_path):
  import fsspec

  memory = fsspec.filesystem("memory")
  memory.put(str(study), "/bucket/sweep", recursive=True)
  (study / "report").mkdir()
  for rows in ("run", "eval"):
    pd.testing.assert_frame_equal(
      analysis.load("memory://bucket/sweep", rows), analysis.load(study, rows)
    )
  one = analysis.load("memory://bucket/sweep/runs/discrete-random-l")
  assert one["run"].item() == "discrete-random-l"
  memory.pipe("/bucket/t.csv", b"N,loss\n1,2\n")
  assert analysis.load("memory://bucket/t.csv")["loss"].item() == 2
  with pytest.raises(FileNotFoundError, match="no run, sweep or table at memory://b/x"):
    analysis.load("memory://b/x")


@pytest.mark.parametrize("absent", ["fsspec", "gcsfs"])
def test_without_the_package_of_a_protocol_one_line_names_it(absent, monkeypatch):
  monkeypatch.setitem(sys.modules, absent, None)
  monkeypatch.delitem(sys.modules, "fsspec.implementations.gcs", raising=False)
  with pytest.raises(ValueError, match="pip install fsspec gcsfs"):
    analysis.load("gs://bucket/sweep")


def test_settings_of_evaluations_are_columns(study):
  folder = study / "runs/discrete-random-l/eval"
  folder.mkdir()
  for guidance in (1, 3):
    record = {"step": 100, "weights": "ema", "values": {"kid": 0.1 * guidance}}
    record["overrides"] = [f"sample.guidance={guidance}", "evals.kid.n=9"]
    (folder / f"100-ema-{guidance}.json").write_text(json.dumps(record))
  table = analysis.load(study, "sampling")
  assert list(table["guidance"]) == [1, 3] and list(table["kid"]) == pytest.approx(
    [0.1, 0.3]
  )
  assert set(table["run"]) == {"discrete-random-l"} and table["D"].iloc[0] == 51200


def test_json_and_parquet_read_as_csv_does(tmp_path):
  rows = {"N": ["350K", "1M", "1,000,000"], "val/loss": [3.0, 2.5, 2.4]}
  path = tmp_path / "t.json"
  for found in (rows, pd.DataFrame(rows).to_dict("records")):
    path.write_text(json.dumps(found))
    assert list(analysis.load(path)["N"]) == [3.5e5, 1e6, 1e6]
  for found in ({"a": 1}, [1, 2], 3):
    path.write_text(json.dumps(found))
    with pytest.raises(TableError, match="neither a list of rows nor an object of col"):
      analysis.load(path)
  pytest.importorskip("pyarrow")
  pd.DataFrame(rows).to_parquet(tmp_path / "t.parquet")
  assert list(analysis.load(tmp_path / "t.parquet")["N"]) == [3.5e5, 1e6, 1e6]


def test_bytes_of_another_encoding_and_unquoted_thousands_name_the_remedy(tmp_path):
  path = tmp_path / "t.csv"
  path.write_bytes("N,größe\n1M,2\n".encode("latin1"))
  with pytest.raises(TableError, match="it is not UTF-8; save it so"):
    analysis.load(path)
  for thousands in ("350,000,3.2\n1,000,000,2.9\n", "350,000,3.2\n"):
    path.write_text(f"N,val/loss\n{thousands}")
    with pytest.raises(TableError, match='quote "1,000,000"'):
      analysis.load(path)


def test_what_is_no_table_is_named(tmp_path):
  (tmp_path / "a.json").write_text("{")
  with pytest.raises(ValueError, match="a.json cannot be read as json"):
    analysis.load(tmp_path / "a.json")
  (tmp_path / "a.xls").write_text("")
  with pytest.raises(ValueError, match="expected a folder, .csv"):
    analysis.load(tmp_path / "a.xls")


def test_a_size_beside_n_is_a_name(tmp_path):
  path = tmp_path / "runs.csv"
  path.write_text("run,size,N,val/loss\na,166M,166M,2.0\nb,1.1B,1.1B,1.5\n")
  table = analysis.load(path)
  assert table["size"].tolist() == ["166M", "1.1B"]
  assert table["N"].tolist() == [166e6, 1.1e9]
  path.write_text("size,val/loss\n166M,2.0\n1.1B,1.5\n")
  assert analysis.load(path)["size"].tolist() == [166e6, 1.1e9]


def test_sweeps_and_records_of_evaluations(study):
  folder = study / "runs/discrete-random-l/eval"
  folder.mkdir()
  points = [
    {"guidance": 1.0, "weights": "ema", "images": 4, "value": 0.3},
    {"guidance": 2.0, "weights": "ema", "images": 4, "value": 0.2},
    {"guidance": 2.0, "weights": "raw", "images": 4, "value": 0.5},
    {"guidance": 2.0, "weights": "ema", "images": 8, "value": 0.1},
  ]
  sweep = {"step": 100, "by": "kid", "points": points}
  (folder / "sweep-100.json").write_text(json.dumps(sweep))
  table = analysis.load(study, "sampling")
  rows = table[["guidance", "kid", "images"]].to_numpy().tolist()
  assert rows == [[1, 0.3, 4], [2, 0.1, 8]]
  record = {"metric": "kid@EffNet", "value": 0.25, "lo": 0.2, "hi": 0.3, "images": 9}
  record |= {"features": "EffNet", "sample": {"guidance": 3.0}}
  missing = {"metric": "fid", "value": None, "missing": "network 'Inception' needs ..."}
  for step, change in ((50, 1.0), (100, 0.0)):
    now = [record | {"value": 0.25 + change}, missing]
    content = {"step": step, "records": [r | {"step": step} for r in now]}
    (folder / f"{step}-ema.json").write_text(json.dumps(content))
  found = analysis.load(study, "metric").set_index("metric")
  assert len(found) == 2 and found.loc["kid@EffNet", "value"] == 0.25
  assert found.loc["kid@EffNet", "cell"] == "discrete-random"
  save_json(study, study / "kept")
  kept = analysis.load(study / "kept", "metric").set_index("metric")
  assert kept.loc["kid@EffNet", "lo"] == 0.2 and "missing" in kept
  shown = tables.metrics(Study.read(study)).set_index("metric")
  column = shown["discrete-random, l"]
  assert column["kid@EffNet"] == "0.25 [0.2, 0.3]"
  assert column["fid"] == "weights missing"
