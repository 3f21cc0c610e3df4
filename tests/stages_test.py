"""What a sweep file becomes: stages, what they share, and their commands."""

import json
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from fluid import config
from fluid.config import ConfigError, identity
from launch.plan import command, plan


def test_plan_shares_tokenizers_and_caches(study, tmp_path):
  stages = plan(study, tmp_path / "w")
  assert [s.kind for s in stages] == [
    "tokenizer", "data", "run", "run", "tokenizer", "data", "run",
  ]  # fmt: skip
  tokenizer, data, first, second, *_, last = stages
  assert first.needs == second.needs == (tokenizer.id, data.id)
  assert not set(last.needs) & set(first.needs)
  assert last.run.model.trunk.layers == 3 and second.run.optim.lr == 0.5
  argv = command(second)
  assert argv[1:3] == ["-m", "fluid.train"]
  assert f"--config.tokenizer.path={tokenizer.folder}" in argv
  assert f"--config.data.cache={data.folder}" in argv
  assert "--config.optim.lr=0.5" in argv and f"--workdir={second.folder}" in argv
  assert not any("data.cache" in a for a in command(tokenizer))


def test_tuples_of_a_point_go_through_flags(tmp_path, monkeypatch):
  """A mixture, say: what the command of a stage says is what the sweep file says."""
  overrides = {
    "tokenizer.path": "t",
    "data.cache": "c",
    "data.mixture": ("a b", "/d/e-f"),
    "data.weights": (0.75, 2),
    "data.source.tags": ("counting",),
    "data.filter.score": "aesthetic",
  }
  (tmp_path / "study.py").write_text(
    f"def sweep():\n  yield dict(name='x', config='configs/toy.py:tokens=discrete', "
    f"overrides={overrides!r})\n"
  )
  (stage,) = plan(tmp_path / "study.py", tmp_path)
  values = flags.FlagValues()
  holder = config_flags.DEFINE_config_file("config", flag_values=values)
  argv = ["train", *(a for a in command(stage) if a.startswith("--config"))]
  monkeypatch.setattr(sys, "argv", argv)  # The package looks here for what is set.
  values(argv)
  run = config.from_config_dict(holder.value)
  assert run == stage.run and run.data.weights == (0.75, 2.0)
  assert run.data.mixture == ("a b", "/d/e-f")


def test_a_seed_shares_the_tokenizer_but_not_another_image_size(study, tmp_path):
  text = study.read_text()
  study.write_text(
    text.replace("'optim.lr': 0.5", "'seed': 7").replace(
      "'diffusion,random'", "'categorical,random'"
    )
  )
  same = {s.id for s in plan(study, tmp_path)}
  study.write_text(text.replace("'optim.lr': 0.5", "'data.image_size': 64"))
  other = {s.id for s in plan(study, tmp_path)}
  assert sum(i.startswith("tokenizer/vq") for i in same) == 1
  assert sum(i.startswith("tokenizer/vq") for i in other) == 2


@pytest.mark.parametrize("key, value", [("data.max_bad", 0.5), ("data.workers", 2)])
def test_how_data_are_read_shares_tokenizer_and_cache(study, tmp_path, key, value):
  before = plan(study, tmp_path)
  study.write_text(study.read_text().replace("'optim.lr': 0.5", f"{key!r}: {value!r}"))
  stages = plan(study, tmp_path)
  assert [s.id for s in stages] == [s.id for s in before]
  by_id = {s.id: s for s in stages}
  assert by_id["run/dr1"].needs == by_id["run/dr2"].needs
  assert f"--config.{key}={value}" in command(by_id["run/dr2"])


@pytest.mark.parametrize(
  "key, value, shared",
  [
    ("data.seed", 1, ""),
    ("data.source.tags", ("counting",), ""),
    ("tokenizer.lr", 0.5, ""),
    ("text.length", 9, "tokenizer"),
  ],
)
def test_what_they_are_made_from_does_not_share_them(
  study, tmp_path, key, value, shared
):
  study.write_text(study.read_text().replace("'optim.lr': 0.5", f"{key!r}: {value!r}"))
  by_id = {s.id: s for s in plan(study, tmp_path)}
  both = set(by_id["run/dr1"].needs) & set(by_id["run/dr2"].needs)
  assert {i.split("/")[0] for i in both} == {shared} - {""}


def test_a_cache_keeps_its_name_whoever_sees_its_files(study, tmp_path):
  """Also one that is made under another name, and that no run has used yet."""
  said, toy, key = tmp_path / "said.json", tmp_path / "toy.py", "train_annotations"
  source = "data=c.Data(source=c.resolve('source', 'coco')())"
  toy.write_text(toy.read_text().replace("steps=4", f"steps=4, {source}"))
  text = study.read_text()
  given = f"overrides={{'data.source.{key}': {str(said)!r}, "
  study.write_text(text := text.replace("overrides={", given))
  cache = lambda: next(s for s in plan(study, tmp_path / "w") if s.kind == "data")
  first = cache()
  said.write_text("{}")
  assert cache().name == first.name
  # As fluid.prepare leaves it, by another name.
  run, old = first.run, tmp_path / "w/data/old"
  tokenizer = tmp_path / "w" / first.needs[0].replace("tokenizer/", "tokenizers/")
  made = identity.of_cache(run) | {"tokenizer.weights": "x", "records.batch": 128}
  assert made["data.files.train"]
  for folder, name, content in (
    (tokenizer, "config.json", {"weights_sha256": "x"}),
    (old, "metadata.json", {"config": made, "splits": {"train": {}, "val": {}}}),
    (old.with_name("other"), "metadata.json", {"config": made | {"data.seed": 5}}),
    (old.with_name("torn"), "metadata.json", {"config": {"data.source.kind": "?"}}),
  ):
    folder.mkdir(parents=True)
    (folder / name).write_text(json.dumps(content))
  found = cache()
  assert found.name == "old" and found.finished()
  (tokenizer / "config.json").write_text(json.dumps({"weights_sha256": "y"}))
  assert cache().name == first.name
  # Files in two places may differ: no run trains on those of another.
  study.write_text(text.replace(str(said), "/b", 1))
  with pytest.raises(ConfigError, match="share .*source.train_annotations' is .*'/b'"):
    plan(study, tmp_path / "w")
