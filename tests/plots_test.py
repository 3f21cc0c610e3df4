"""analysis.plots and analysis.samples: what is drawn, and the numbers behind it."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest

from analysis import coverage, plots, samples
from analysis.load import CELLS
from analysis.report import style
from analysis.report.figures import FIGURES, Study, loss, metrics, pieces
from fluid.evals import images as evaluator
from tests import synthetic

TOY = Path(__file__).parents[1] / "analysis/results/toy_study"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
  return synthetic.write_study(
    tmp_path_factory.mktemp("plots") / "w", sizes=("xs", "s", "l", "xl"),
    unfinished=("discrete-random-s",),
  )  # fmt: skip


@pytest.fixture(scope="module")
def drawn(study):
  return {p.name: p for p in plots.draw(Study.read(study))}


def test_all_figures_of_a_study(drawn):
  assert set(drawn) == {
    "val_loss_vs_size", "val_loss_vs_compute", "val_loss_curves", "metrics_vs_size",
    "metrics_vs_steps", "metrics_vs_compute", "metrics_vs_loss", "geneval_tags",
    "published", "seconds_per_image", "samples", "nats_vs_size", "loss_known",
  }  # fmt: skip


def _boxes(figure, artists):
  figure.draw_without_rendering()
  return [a.get_window_extent() for a in artists]


def test_a_legend_stays_on_the_figure_and_leaves_panels_their_height():
  heights = []
  for sizes in (1, 4, 14):
    n = np.repeat(np.geomspace(1e4, 1e6, sizes), 2)
    table = pd.DataFrame({"N": n, "step": [1, 2] * sizes, "loss": 5.0})
    table = table.assign(cell="discrete-raster", size=table["N"].map("{:.3g}".format))
    with matplotlib.rc_context(style.RC):
      plot = loss.per_cell(table, "step", ["loss"], "a", "b", "c", log=False)
    (legend,) = plot.figure.legends
    box, panel = _boxes(plot.figure, [legend, plot.figure.axes[0]])
    assert len(legend.get_texts()) == sizes
    assert box.x0 >= 0 and box.x1 <= plot.figure.bbox.width
    heights.append(panel.height)
  assert min(heights) > 0.9 * heights[0], heights


def test_labels_of_logarithmic_axes_are_apart_and_without_powers_of_ten():
  for low, high in ((0.2, 0.3), (3, 5.4), (0.002, 2), (4e4, 5e5), (1e9, 1e13)):
    figure, axes = style.panels(1, 1)
    ax = axes[0][0]
    ax.plot([1e5, 1e6], [low, high])
    pieces.log_axes(ax, y=True)
    ticks = [t for t in ax.get_yticklabels(which="both") if t.get_text()]
    boxes = [b for b in _boxes(figure, ticks) if 0 <= b.y0 <= figure.bbox.height]
    texts = [t.get_text() for t in ax.get_yticklabels(which="both") if t.get_text()]
    assert len(boxes) >= 3 and not any("10^" in t for t in texts), texts
    boxes.sort(key=lambda b: b.y0)
    assert all(a.y1 <= b.y0 for a, b in zip(boxes, boxes[1:])), texts


def test_legends_of_metrics_against_loss_hide_no_point(drawn):
  figure = drawn["metrics_vs_loss"].figure
  axes = [ax for ax in figure.axes if ax.get_legend()]
  legends = _boxes(figure, [ax.get_legend() for ax in axes])
  assert axes and all(
    box.y0 >= ax.get_window_extent().y1 - 1 for ax, box in zip(axes, legends)
  )


def test_token_types_never_share_a_loss_axis(drawn):
  for name in ("val_loss_vs_size", "metrics_vs_loss", "loss_known"):
    for ax in drawn[name].figure.axes:
      names = [t.split("-")[0] for t in ax.get_legend_handles_labels()[1]]
      assert len(set(names)) == 1
  labels = [ax.get_ylabel() for ax in drawn["val_loss_vs_size"].figure.axes]
  assert "diffusion loss" in labels[0] and "nats per token" in labels[1]


def test_likelihood_of_both_orders_is_on_one_axis(drawn):
  (ax,) = drawn["nats_vs_size"].figure.axes
  names = ax.get_legend_handles_labels()[1]
  assert names == ["discrete-random", "discrete-raster"]
  assert "exact" in drawn["nats_vs_size"].caption
  data = drawn["nats_vs_size"].data
  assert set(data["cell"]) == set(names) and data["val/nats_sem"].notna().all()


def test_loss_by_what_is_known_is_of_the_largest_runs(drawn):
  panels = drawn["loss_known"].figure.axes
  assert [ax.get_title() for ax in panels] == ["continuous tokens", "discrete tokens"]
  data = drawn["loss_known"].data
  assert set(data["size"]) == {"xl"} and len(data) == 4 * 10
  row = data[(data.cell == "discrete-raster") & (data.known == 0.05)].iloc[0]
  assert row.loss == pytest.approx(1.45 * synthetic.loss("discrete", 2e6), rel=1e-6)


def test_fit_is_of_finished_runs_and_said_in_the_caption(drawn):
  plot = drawn["val_loss_vs_size"]
  assert "discrete-random-s" not in set(plot.data["run"])
  reading = f"continuous-random: 10x N -> val/loss x {10**-0.05:.3f}"
  assert reading in plot.caption
  assert "discrete-random: no power law (3 runs; 2 parameters need 4)" in plot.caption
  one = plot.data[plot.data.cell == "discrete-raster"]
  np.testing.assert_allclose(one["fitted"], one["val/loss"])


def test_unfinished_runs_have_their_curve(drawn):
  assert "discrete-random-s" in set(drawn["metrics_vs_steps"].data["run"])
  titles = [ax.get_title() for ax in drawn["metrics_vs_steps"].figure.axes[:4]]
  assert titles == list(CELLS)


def test_distances_are_named_after_their_network(drawn):
  labels = [ax.get_ylabel() for ax in drawn["metrics_vs_size"].figure.axes]
  assert any(label.startswith("KID-EffNet") for label in labels)


def test_metric_against_loss_carries_pearson_r(drawn):
  data = drawn["metrics_vs_loss"].data
  row = data[(data.cell == "discrete-raster") & (data.metric == "kid")].iloc[0]
  x, y = (
    data[(data.cell == "discrete-raster") & (data.metric == "kid")][c]
    for c in ("val/loss", "value")
  )
  assert row.pearson_r == pytest.approx(np.corrcoef(x, y)[0, 1])


def test_the_same_table_gives_the_same_files(study, tmp_path):
  for name in "ab":
    path = metrics.against_size(Study.read(study)).save(tmp_path / name)
    assert path == tmp_path / name / "metrics_vs_size.png"
  for suffix in ("png", "svg", "csv"):
    one, two = (tmp_path / d / f"metrics_vs_size.{suffix}" for d in "ab")
    assert one.read_bytes() == two.read_bytes()
  assert len(pd.read_csv(tmp_path / "a/metrics_vs_size.csv")) == 15


def test_nothing_to_draw_draws_nothing(tmp_path):
  runs = pd.DataFrame({"run": ["a"], "cell": [""], "size": [""], "status": ["failed"]})
  empty = Study(runs, pd.DataFrame(), pd.DataFrame(), tmp_path)
  assert [p.name for p in plots.draw(empty)] == ["published"]


def test_grids_are_cut_into_the_tiles_they_were_made_of(tmp_path):
  synthetic.write_samples(tmp_path / "samples", 7, level=50)
  grid = samples.read(tmp_path)
  assert grid.step == 7 and list(grid.tiles) == synthetic.PROMPTS
  tiles = [t for p in synthetic.PROMPTS for t in grid.tiles[p]]
  for k, tile in enumerate(tiles):
    assert tile.shape == (16, 16, 3) and (tile == 50 + k).all()


@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_cutting_undoes_the_grid_of_the_evaluator(n):
  images = np.random.default_rng(n).integers(256, size=(n, 8, 8, 3), dtype=np.uint8)
  np.testing.assert_array_equal(samples.cut(evaluator.grid(images), n), images)


def test_a_grid_of_something_else_is_no_grid(tmp_path):
  with pytest.raises(ValueError, match="no grid of 5 square tiles"):
    samples.cut(np.zeros((34, 34, 3), np.uint8), 5)
  assert samples.read(tmp_path) is None


def test_a_sheet_shows_every_cell_for_the_same_prompts(drawn):
  data = drawn["samples"].data
  assert set(data["prompt"]) == set(synthetic.PROMPTS)
  assert list(data["run"].unique()) == [f"{c}-xl" for c in CELLS]


def test_settings_of_sampling_are_drawn_where_they_vary(study):
  s = Study.read(study)
  assert metrics.sampling(s) is None and metrics.aligner_depth(s) is None
  rows = [
    s.ended.iloc[0].to_dict() | {"guidance": g, "temperature": t, "kid": g * t}
    for g in (1.0, 3.0, 5.0)
    for t in (0.9, 1.0)
  ]
  varied = dataclasses.replace(s, samplings=pd.DataFrame(rows))
  plot = metrics.sampling(varied)
  assert {"guidance", "temperature", "kid"} <= set(plot.data) and len(plot.data) == 6
  kid = [ax for ax in plot.figure.axes if ax.get_ylabel().startswith("KID")]
  assert [ax.get_xlabel() for ax in kid] == ["guidance scale", "temperature"]
  assert len(kid[0].get_legend_handles_labels()[1]) == 2  # a line per temperature
  deep = s.runs.assign(aligner_layers=np.arange(len(s.runs)) % 3)
  assert metrics.aligner_depth(dataclasses.replace(s, runs=deep)) is not None


def test_a_study_of_budgets_shows_its_frontier(tmp_path):
  x = coverage.isoflop_grid(np.geomspace(1e18, 1e20, 5))
  y = coverage.chinchilla(x[0], x[1] / 6 / x[0], **coverage.CHINCHILLA)
  runs = pd.DataFrame({"N": x[0], "compute": x[1], "val/loss": y})
  runs = runs.assign(run=runs.index.map(str), cell="discrete-raster", size="")
  plot = FIGURES["frontier"](Study(runs, pd.DataFrame(), pd.DataFrame(), tmp_path))
  assert "compute-optimal N ~ compute^0.514" in plot.caption
  assert len(plot.data) == 5


def test_command_line_draws_one_and_names_what_is_missing(tmp_path):
  def call(name):
    argv = [
      sys.executable,
      "-m",
      "analysis.plots",
      f"--workdir={TOY}",
      f"--only={name}",
    ]
    argv.append(f"--out={tmp_path}")
    return subprocess.run(argv, cwd=TOY.parents[2], capture_output=True, text=True)

  assert call("geneval_tags").stdout == f"{tmp_path / 'geneval_tags.png'}\n"
  bad = call("aligner_depth")
  assert bad.returncode == 2 and "has no numbers for aligner_depth" in bad.stderr
