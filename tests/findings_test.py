"""analysis.report.findings on studies whose answer is planted, and their page."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis.report.findings import (
  ABSENT,
  APPEARS,
  FINDINGS,
  OPEN,
  PARTLY,
  findings,
  markdown,
)
from analysis.report.findings.judge import Estimate, combine, mean, verdict
from analysis.report.findings.pairs import tag_intervals
from analysis.report.study import ORDER_LOSS, Study
from tests import synthetic

ROOT = Path(__file__).parents[1]
STUDIES = ("toy_study", "emoji_study")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  folder = tmp_path_factory.mktemp("findings") / "w"
  return analysis.load(synthetic.write_study(folder, steps=100))


def verdicts(runs):
  return {name: f.verdict for name, f in findings(Study(runs)).items()}


def planted(gap: float, *, rise=0.1, noise=0.0, half=0.02, sizes=5) -> pd.DataFrame:
  """Random order's GenEval: `gap` above raster's at the smallest of `sizes` sizes.

  Args:
    gap: at the smallest compute.
    rise: of raster for 10 times the compute; random rises by 0.1 more.
    noise: between runs.
    half: of the intervals.
    sizes: from 1e5 parameters by factors of 2.
  """
  rng, rows = np.random.default_rng(0), []
  for tokens, order in synthetic.CELLS:
    for i in range(sizes):
      n, slope = 1e5 * 2**i, rise + 0.1 * (order == "random")
      score = 0.2 + slope * np.log10(2**i) + gap * (order == "random")
      score += noise * rng.normal()
      rows.append({
        "run": f"{tokens}-{order}-{i}", "cell": f"{tokens}-{order}", "tokens": tokens,
        "order": order, "size": str(i), "status": "finished", "N": n, "step": 100,
        "batch": 8, "compute": 1e3 * n, "flops_per_image": n, "wall_seconds": 36.0,
        "geneval/overall": score, "geneval/overall_lo": score - half,
        "geneval/overall_hi": score + half, "sample/images": 400,
        "sample/seconds_per_image": 0.9,
      })  # fmt: skip
  return pd.DataFrame(rows)


def test_a_study_made_like_the_paper(runs):
  found = verdicts(runs)
  for name in ("power_laws", "kid_tokens", "geneval_sizes", "geneval_order",
               "several_objects", "keeps_improving", "loss_tells", "kid_crossing",
               "geneval_crossing"):  # fmt: skip
    assert found[name] == APPEARS, name
  assert found["geneval_tokens"] == OPEN  # planted equal
  assert found["loss_order"] == found["loss_crossing"] == ABSENT


def test_verdicts_turn_with_the_numbers(runs):
  swapped = {"continuous": "discrete", "discrete": "continuous"}
  assert verdicts(runs.assign(tokens=runs["tokens"].map(swapped)))["kid_tokens"] == ABSENT  # fmt: skip  # noqa: E501
  flipped = runs["order"].map({"random": "raster", "raster": "random"})
  found = verdicts(runs.assign(order=flipped))
  assert found["geneval_order"] == found["several_objects"] == ABSENT
  bent = runs.copy()
  bent.loc[bent.cell == "discrete-random", "val/loss"] *= [1, 2, 1, 2, 1]
  assert verdicts(bent)["power_laws"] == PARTLY
  worse = runs.copy()
  mine = worse.cell == "continuous-random"
  for column in ("val/loss", "kid", "kid_lo", "kid_hi"):
    worse.loc[mine, column] = worse.loc[mine, column].to_numpy()[::-1]
  found = verdicts(worse)
  assert found["keeps_improving"] == ABSENT and found["loss_tells"] != APPEARS


def test_geneval_at_chance_is_no_evidence(runs):
  found = findings(Study(runs.assign(**{"geneval/chance": 0.9})))
  for name in ("geneval_order", "geneval_crossing", "several_objects"):
    assert found[name].verdict == OPEN
    assert "at chance" in found[name].evidence[0] and found[name].needs
  assert "GenEval" not in " ".join(found["keeps_improving"].evidence)


def test_one_win_in_two_is_no_finding(runs):
  xs = runs[runs["size"] == "xs"].copy()
  for column in ("kid", "kid_lo", "kid_hi"):
    xs.loc[xs.cell == "continuous-random", column] = 1.0
  finding = findings(Study(xs))["kid_tokens"]
  assert finding.verdict == ABSENT
  assert "continuous is better in 1, worse in 1, open in 0 of 2" in finding.evidence[0]


def test_overlap_is_open_and_says_how_many_images_would_decide():
  table = planted(0.01, sizes=1, half=0.02)
  finding = findings(Study(table))["geneval_order"]
  # Differences of 0.01 +- 0.02 sqrt(2), and so their mean: 8 times the images.
  assert finding.verdict == OPEN
  assert "+0.01 [-0.0183, +0.0383]; random is better in 0" in finding.evidence[0]
  assert "8.0 times the images (3,200 a run instead of 400, 3.2 hours" in finding.needs[0]  # fmt: skip  # noqa: E501
  blind = table.drop(columns=["geneval/overall_lo", "geneval/overall_hi"])
  finding = findings(Study(blind))["geneval_order"]
  assert finding.verdict == OPEN and "gives an interval" in finding.needs[0]


def test_a_pair_says_that_its_rows_are_not_equal():
  table = planted(0.3)
  table["masks"] = np.where(table["order"] == "random", 4, np.nan)
  lines = findings(Study(table))["geneval_order"].evidence
  assert all("trained on 4 times the rows" in line for line in lines[1:])
  table["batch"] *= np.where(table["order"] == "raster", 4, 1)
  assert "rows" not in " ".join(findings(Study(table))["geneval_order"].evidence)


def test_crossings():
  """Random gains 0.1 a decade on raster: from -0.2 it is level after two decades."""
  assert verdicts(planted(0.3))["geneval_crossing"] == APPEARS
  behind = findings(Study(planted(-0.2, noise=1e-3)))["geneval_crossing"]
  assert behind.verdict == OPEN
  assert all("(extrapolated)" in line for line in behind.evidence)
  at = float(behind.evidence[0].split("overtakes at ")[1].split()[0])
  assert at == pytest.approx(1e10, rel=0.3)
  # The largest runs, of 1.6e6 parameters, spend 1.6e9 FLOPs in 36 s. Of both cells
  # 1e10 FLOPs on as many rows are 1e7 parameters and about four minutes.
  said = re.findall(r"(\S+) of (\S+) parameters \((\S+) minutes\)", behind.needs[0])
  assert [cell for cell, _, _ in said] == ["continuous-random", "continuous-raster"]
  for _, n, minutes in said:
    assert float(n) == pytest.approx(at / 1e3, rel=0.05)
    assert float(minutes) == pytest.approx(0.6 * at / 1.6e9, rel=0.05)
  longer = planted(-0.9).assign(step=lambda t: 100 * (1 + t["size"].astype(int)))
  lines = findings(Study(longer))["geneval_crossing"].evidence
  assert all("unequal rows, 800 to 4e+03" in line for line in lines)
  never = findings(Study(planted(-0.9, noise=1e-3)))["geneval_crossing"]
  assert never.verdict == ABSENT and "exclude one" in never.evidence[0]
  few = findings(Study(planted(0.3, sizes=2)))["geneval_crossing"]
  assert few.verdict == OPEN and "2 more sizes (1.2 minutes" in few.needs[0]


def test_trends_are_judged_by_the_scatter_of_runs_as_well():
  steady = findings(Study(planted(0, half=1e-4)))["geneval_sizes"]
  assert steady.verdict == APPEARS
  noisy = findings(Study(planted(0, rise=0, noise=0.1, half=1e-4)))["geneval_sizes"]
  assert noisy.verdict == OPEN and "seeds of every run" in " ".join(noisy.needs)


def test_predictions_that_could_hardly_fail_are_open():
  def law(*factors):
    table = planted(0, sizes=len(factors)).assign(**{"val/loss_sem": 1e-3})
    table["val/loss"] = (1e3 / table["N"]) ** 0.1 * np.tile(factors, 4)
    return FINDINGS["predicted"](Study(table))

  wide, wider = law(1, 1.0125, 0.9875, 1.0125, 1), law(1, 1.02, 0.97, 1.03, 1)
  assert wide.verdict == OPEN and "more size" in wide.needs[0]
  assert wider.verdict == OPEN and "several seeds" in wider.needs[0]
  assert law(1, 1.001, 0.999, 1.001, 1).verdict == APPEARS
  assert law(1, 1.001, 0.999, 1.001, 1.2).verdict == ABSENT
  # A cell that lies on its law by luck is judged by the scatter of all four.
  lucky = planted(0, sizes=5)
  by_cell = np.ones((4, 5)) * [1, 1.01, 0.99, 1.01, 1]
  by_cell[0] = [1, 1, 1, 1, 1.02]
  lucky["val/loss"] = (1e3 / lucky["N"]) ** 0.1 * by_cell.ravel()
  finding = FINDINGS["predicted"](Study(lucky))
  assert finding.verdict == APPEARS and "(-2.0%, inside" in finding.evidence[0]
  assert "(8 degrees of freedom)" in finding.evidence[-1]


def test_orders_are_compared_in_one_unit(runs):
  s = Study(runs).compared
  discrete = s["tokens"] == "discrete"
  assert (s[ORDER_LOSS] == s["val/nats"])[discrete].all()
  even = s["val/loss"] * np.where(s["order"] == "random", 1.1, 1.0)
  np.testing.assert_allclose(s[ORDER_LOSS][~discrete], even[~discrete])
  # The standard error of val/loss is not one of this mean.
  assert s[f"{ORDER_LOSS}_sem"].isna()[~discrete].all()
  assert (s[f"{ORDER_LOSS}_sem"] == s["val/nats_sem"])[discrete].all()
  bare = runs.drop(columns=[c for c in runs if "nats" in c or "known" in c])
  finding = findings(Study(bare))["loss_order"]
  assert "discrete" not in " ".join(finding.evidence[1:])
  assert [n.split(":")[0] for n in finding.needs[-2:]] == ["discrete", "continuous"]


def test_orders_of_continuous_tokens_are_compared_by_their_density(runs):
  """Nats of a density may be negative: 4 +- 0.98 less for random order, at any size."""
  rank = runs.groupby("cell").cumcount()
  nats = -30 - 2 * rank - 4 * (runs["order"] == "random")
  columns = {"val/density_nats": nats, "val/density_nats_sem": 0.5 / np.sqrt(2)}
  table = runs.assign(**columns).where(runs["tokens"] == "continuous")
  table = table.fillna(runs[runs["tokens"] == "discrete"])
  order, crossing = (
    FINDINGS[name](Study(table)) for name in ("loss_order", "loss_crossing")
  )
  # Of tokens that are discrete the difference is of nats as well, not a share.
  assert "continuous xs: -34 [-34.7, -33.3] against -30 [-30.7, -29.3], -4 [-4.98, -3.02]" in order.evidence  # fmt: skip  # noqa: E501
  assert "%" not in " ".join(order.evidence) and order.verdict == ABSENT
  assert "random is better in 5, worse in 5, open in 0 of 10" in order.evidence[0]
  assert "the loss of random is -4.0" in crossing.evidence[0]
  # Where only one run has it, no two quantities are mixed.
  one = table["val/density_nats"].where(table.index == table.index[0])
  mixed = Study(table.assign(**{"val/density_nats": one}))
  assert not mixed.by_density and (mixed.compared[ORDER_LOSS] > 0).all()


def test_intervals_of_sums_and_tags():
  a, b = Estimate(3, 1, 4), Estimate(1, 0.5, 3)
  d = combine((1, -1), [a, b])
  assert (d.value, d.lo, d.hi) == (2, 2 - np.hypot(2, 2), 2 + np.hypot(1, 0.5))
  # 400 independent images a tag: the interval of the mean leads back to each tag's.
  p = np.array([0.9, 0.5, 0.3, 0.7, 0.2, 0.4])
  half = 1.96 * np.sqrt((p * (1 - p)).sum() / 36 / 400)
  row = dict(zip([f"geneval/{t}" for t in synthetic.TAGS], p))
  ends = {"geneval/overall_lo": 0.5 - half, "geneval/overall_hi": 0.5 + half}
  out = tag_intervals(pd.DataFrame([row | ends])).iloc[0]
  width = out["geneval/colors_hi"] - out["geneval/colors_lo"]
  assert width == pytest.approx(2 * 1.96 * np.sqrt(0.7 * 0.3 / 400), rel=0.01)


def test_means_over_pairs_that_share_their_prompts_cover():
  """Eight pairs of equal cells, of which each likes some of the 96 prompts better."""
  rng, studies = np.random.default_rng(0), 200
  likes = rng.normal(size=(studies, 2, 1, 1, 96)) + rng.normal(
    size=(studies, 1, 1, 1, 96)
  )
  level = np.linspace(-1, 1, 8)[:, None]  # of orders and sizes
  chance = 1 / (1 + np.exp(-likes - level[:, None]))  # [studies, 2, 8, 1, 96]
  scores = rng.binomial(4, chance[:, :, :, 0]) / 4
  value, half = scores.mean(-1), 1.96 * scores.std(-1, ddof=1) / np.sqrt(96)
  independent, shared = [], []
  for v, h in zip(value, half):  # [2, 8]
    runs = [[Estimate(x, x - e, x + e) for x, e in zip(*row)] for row in zip(v, h)]
    pairs = [combine((1, -1), pair) for pair in zip(*runs)]
    independent.append(combine(np.full(8, 1 / 8), pairs).sign == 0)
    shared.append(mean(pairs).sign == 0)
  assert np.mean(shared) >= 0.95 > np.mean(independent) + 0.05


@pytest.mark.parametrize(
  "signs,overall,said",
  [
    ((), 0, OPEN), ((0, 0), 0, OPEN), ((1, 1), 1, APPEARS), ((1, 0), 0, PARTLY),
    ((-1, 0), 0, ABSENT), ((1, -1), 0, ABSENT), ((0, 0, 1), 1, PARTLY),
    ((0, 0, 1), -1, ABSENT), ((1, 1, -1), 1, PARTLY),
  ],
)  # fmt: skip
def test_verdicts(signs, overall, said):
  assert verdict(list(signs), overall) == said


def test_the_page_has_a_section_a_study_and_a_block_a_finding(tmp_path):
  argv = [sys.executable, "-m", "analysis.findings"]
  argv += [f"--workdir=analysis/results/{name}" for name in STUDIES]
  call = lambda *more: subprocess.run(
    [*argv, *more], cwd=ROOT, capture_output=True, text=True
  )
  out = call(f"--out={tmp_path}/findings.md")
  assert out.returncode == 0, out.stderr
  text = (tmp_path / "findings.md").read_text()
  for name in STUDIES:
    assert f"\n## {name}\n" in text
    assert f"--workdir analysis/results/{name}" in text
  assert text.count("\n### ") == len(STUDIES) * len(FINDINGS)
  assert text.count("\nTest: ") == len(STUDIES) * len(FINDINGS)
  assert "nan" not in text and "inf " not in text
  assert call("--workdir=nowhere").returncode == 2


def test_what_is_open_says_what_it_would_take():
  for name in STUDIES:
    for finding in findings(Study.read(ROOT / "analysis/results" / name)).values():
      assert finding.needs or finding.verdict != OPEN, finding.claim
  study = Study(pd.DataFrame({"run": ["a"], "cell": [""], "size": [""], "status": ["failed"]}))  # fmt: skip  # noqa: E501
  assert {f.verdict for f in findings(study).values()} == {OPEN}
  assert "0 of 1 runs finished" in markdown.page({"a/b": study}, "command")
