"""The table of topologies: what it asks for, and what it makes of reports."""

from configs import sizes
from fluid.models.published import RUNS
from fluid.tokenizers import TOKENIZERS
from launch import topologies

OURS = {"vae", "vq", "blocks"}  # The last is that of tests/toy_parts.py.


def test_every_cell_and_size_has_a_row_on_every_generation():
  rows = list(topologies.ladder())
  cells = {r.what for r in rows}
  assert len(cells) == 4 * len(sizes.PAPER)
  for cell in cells:
    kinds = {r.topology.split(":")[0] for r in rows if r.what == cell}
    assert kinds == {"v5e", "v5p", "v6e"}
  assert any(r.slices > 1 for r in rows)
  assert len({r.name for r in topologies.rows()}) == len(topologies.rows())


def test_every_family_and_published_tokenizer_has_a_row():
  rows = list(topologies.published())
  family = lambda name: name.split("_")[0]
  trained = {family(r.what[0]) for r in rows if r.mode == "train"}
  assert trained == {family(name) for name in RUNS}
  assert {r.what[0] for r in rows if r.mode == "encode"} == set(TOKENIZERS) - OURS


def test_batch_and_weights_divide_over_the_devices_of_every_row():
  for row in topologies.ladder():
    devices = row.slices
    for side in row.topology.split(":")[1].split("x"):
      devices *= int(side)
    over = dict(row.overrides)
    assert devices % over["mesh.fsdp"] == 0
    assert topologies.BATCH % devices == 0
    layers, width, heads = sizes.PAPER[row.what[0]]
    assert width % over["mesh.fsdp"] == 0


def test_the_table_shows_what_fits_and_what_does_not():
  first, second, *_ = topologies.ladder()
  model = next(topologies.published())
  fits = {
    "mesh": {"data": 4, "fsdp": 16},
    "accum": 1,
    "remat": "block",
    "fits": True,
    "memory": {"total": 2**30, "limit": 16 * 2**30},
    "collectives": {"all-gather": {"count": 1, "bytes": 2**29, "link_bytes": 1.0}},
    "estimate": {
      "images_per_second": 1000.0,
      "compiler_mfu": 0.6,
      "roofline_mfu": 0.7,
    },
  }
  text = topologies.markdown(
    {
      first.name: fits,
      second.name: {"fits": False, "error": "too big"},
      model.name: fits | {"batch": 64},
    }
  )
  table = [line for line in text.splitlines() if line.startswith("|")]
  table, beside = table[:4], table[4:]
  assert len(beside) == 3
  assert "| 64 | 1 | 1.0 of 16 | 0.5 |" in beside[2]
  assert "1.0 of 16 | 0.5 | 1,000 | 60% | 70%" in table[2]
  assert "does not fit: too big" in table[3]
  assert {line.count("|") for line in table} == {12}
