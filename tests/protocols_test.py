"""Protocols of published tables on small sets in their true formats.

And the commands of the docs: they are understood, and what they miss is said.
"""

import collections
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from fluid import config, evaluate
from fluid.data import make_source
from fluid.data.imagenet import ImageNetConfig
from fluid.evals import distribution, features, protocols, samples
from fluid.evals.features import clip
from fluid.evals.loss import LossConfig
from fluid.models.conditions.label import ClassConfig
from fluid.text.classes import ClassesConfig
from fluid.text.learned import LearnedConfig
from tests.conftest import ROOT
from tests.measures_test import _Fake, folder, noise
from tests.random_run import written
from tests.sources import WNIDS, kaggle, write_coco, write_imagenet
from tests.vision_test import DATA as VISION


@pytest.fixture
def networks(monkeypatch):
  """Small ones in the place of those that published numbers are of."""
  monkeypatch.setitem(features.FEATURES, "Inception", _Fake)
  tiny = functools.partial(clip.CLIP, VISION / "clip")
  for name in ("CLIP-B32", "CLIP-L14-336"):
    monkeypatch.setitem(features.FEATURES, name, tiny)
  features.load.cache_clear()
  yield
  features.load.cache_clear()


def test_the_protocol_of_coco(tmp_path, networks, monkeypatch, capsys):
  """A model of other images, which draws each caption's own image: no distance."""
  words = LearnedConfig(length=12, vocab_size=120)
  workdir = written(tmp_path, words, {"loss": LossConfig()})
  shutil.copy(tmp_path / "data" / words.FILE, workdir)

  def coco(name, ids):
    found = config.to_dict(write_coco(tmp_path / name, [*range(1, 9)], [*ids]))
    keys = ("kind", "val_annotations", "val_images")
    return [f"data.source.{key}={found[key]}" for key in keys]

  def run(source, **options):
    return evaluate.evaluate(workdir, overrides=source, **options)

  first = coco("first", range(100, 112))
  protocol = {"protocol": "coco30k-fid", "quick": True}
  found = run(first, **protocol)
  assert np.isfinite([found[k] for k in ("fid", "cmmd", "clip_score")]).all()
  assert found["fid"] > 1e-3 and found["fid_images"] == found["fid_real"] == 12
  said = found["deviations"]
  assert said.startswith("not comparable with coco30k-fid: --quick; images of 16 pix")
  assert "12 images (protocol: 30000)" in said and "images of 'coco'" not in said
  (file,) = (workdir / "eval").glob("*coco30k*.json")
  fid = json.loads(file.read_text())["records"][0]
  note = "published numbers are of 30000 images, this of 12"
  assert note in fid["notes"]
  assert f"fid: {note}\n" in capsys.readouterr().out
  trained = config.from_file(workdir / "config.json")
  off = protocols.deviations(protocols.apply(trained, "coco30k-fid"), "coco30k-fid")
  assert off[1:] == ["images of 'shapes' (protocol: coco)"]

  # Another set of as many images: what is kept of the first is not taken for its own.
  second, images = coco("second", range(140, 152)), {}
  monkeypatch.setattr(
    distribution, "draw", lambda net, context, params, step, prompts, **_: (
      np.stack([images[p] for p in prompts]), {},
    ),
  )  # fmt: skip
  for source in (first, second):
    data = evaluate.override(trained, source).data
    val = make_source(data, "val")
    images |= {val.caption(i): val[i]["image"] for i in range(len(val))}
    own = run(source, **protocol)
    assert abs(own["fid"]) < 1e-6 < found["fid"] and abs(own["cmmd"]) < 1e-3
  assert len(images) == 24

  # And its tokens are not those of the training.
  before, there, after = (run(s, names=["loss"]) for s in ([], first, []))
  assert before == after and before["val/loss_count"] == 24
  assert there["val/loss_count"] == 12 and there["val/loss"] != before["val/loss"]


def test_the_protocol_of_imagenet(tmp_path, networks, monkeypatch):
  """By class, against a file in ADM's layout; and the loss of a folder given away."""
  write_imagenet(tmp_path / "imagenet")
  kaggle(tmp_path / "imagenet")
  source = ImageNetConfig(path=str(tmp_path / "imagenet"), num_classes=len(WNIDS))
  condition = ClassConfig(drop=0.2)
  workdir = written(
    tmp_path, ClassesConfig(), {"loss": LossConfig()}, source, condition=condition
  )
  (tmp_path / "weights").mkdir()
  adm = tmp_path / "weights" / "VIRTUAL_imagenet256_labeled.npz"
  given = {"mu": np.zeros(6), "sigma": np.eye(6), "mu_s": np.ones(6)}
  np.savez(adm, noise(10), **given, sigma_s=np.eye(6))
  monkeypatch.setenv("FLUID_WEIGHTS", str(adm.parent))
  asked = []
  real = samples.Sampler.__call__

  def heard(self, params, prompts, **kwargs):
    asked.append(list(prompts))
    return real(self, params, prompts, **kwargs)

  monkeypatch.setattr(samples.Sampler, "__call__", heard)
  found = evaluate.evaluate(workdir, protocol="imagenet50k", quick=True)
  names = ("fid", "sfid", "inception_score", "precision", "recall")
  assert np.isfinite([found[name] for name in names]).all()
  assert collections.Counter(asked[-1]) == dict.fromkeys(WNIDS, 32)
  (file,) = (workdir / "eval").glob("*imagenet50k-quick.json")
  judged = json.loads(file.read_text())["records"]
  assert {r["features"] for r in judged} == {"Fake, adm"}
  assert "--quick" in found["deviations"]
  assert "4 classes (protocol: 1000)" in found["deviations"]
  assert "reference" not in found["deviations"]
  again = evaluate.evaluate(workdir, protocol="imagenet50k-rfid", quick=True)
  assert again["reconstruction/fid"] > 1e-3
  seen = int(again["reconstruction/images"])
  assert f"{seen} images (protocol: 50000)" in again["deviations"]
  adm.unlink()
  with pytest.raises(config.ConfigError, match="no .*VIRTUAL_imagenet256_labeled.npz"):
    evaluate.evaluate(workdir, protocol="imagenet50k", quick=True)

  # What docs/reproduce.md asks of a converted folder, which has no cache.
  with_cache = evaluate.evaluate(workdir, names=["loss"])
  shutil.copy(tmp_path / "data/classes.txt", workdir)
  run = config.from_file(workdir / "config.json")
  run = config.replaced(run, {"data.cache": ""})
  (workdir / "config.json").write_text(json.dumps(config.to_dict(run)))
  alone = evaluate.evaluate(workdir, names=["loss"])
  assert alone["val/loss"] == pytest.approx(with_cache["val/loss"], rel=1e-5)
  assert jax.tree.map(type, alone) == jax.tree.map(type, with_cache)


DOCS = ("docs/reproduce.md", "docs/evaluation.md")
# As tests/cli_test.py: a process of its own for each, forked, as imports take seconds.
EACH = """
import json, os, runpy, sys
import jax, optax, orbax.checkpoint, grain
from fluid import evaluate
for number, words in enumerate(json.loads(sys.argv[1])):
  sys.stdout.flush()
  if not (child := os.fork()):
    file = os.open(f"{number}.log", os.O_CREAT | os.O_WRONLY)
    os.dup2(file, 1), os.dup2(file, 2)
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    os._exit(0)
  print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def commands():
  """What the docs print, as lists of words; what follows a comment sign is not."""
  out = []
  for doc in DOCS:
    text = (ROOT / doc).read_text().replace("\\\n", " ")
    inline = re.findall(r"`python -m (fluid\.[^`]*)`", text)
    for line in re.findall(r"^    python -m (fluid\..*)$", text, re.M) + inline:
      words = shlex.split(line, comments=True)
      out.append([w for w in words if w != "..."])
  return out


def ended(commands, cwd):
  """Runs them in a folder without weights: status of each, and what it said."""
  env = {k: v for k, v in os.environ.items() if k != "FLUID_WEIGHTS"}
  done = subprocess.run(
    [sys.executable, "-c", EACH, json.dumps(commands)],
    cwd=cwd,
    env=env | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
  )
  codes = [int(code) for code in done.stdout.split()]
  assert len(codes) == len(commands), done.stderr
  said = [(cwd / f"{number}.log").read_text() for number in range(len(codes))]
  assert not [s for s in said if "Traceback" in s]
  return list(zip(codes, said))


def test_the_commands_of_the_docs_say_what_is_missing(tmp_path):
  """In a folder without weights and data: each ends well, or names what it needs."""
  (tmp_path / "configs").symlink_to(ROOT / "configs")
  asked = commands()
  assert len(asked) > 12
  for words, (code, said) in zip(asked, ended(asked, tmp_path)):
    if code == 0:
      continue
    last = said.strip().splitlines()[-1]
    assert code == 2 and last.startswith("error: "), (words, code, said)
    # It is a file of its own that is named, not how it was written.
    values = [w.partition("=")[2] or w for w in words[1:] if w[0] != "-" or "=" in w]
    named = any(v and v.split(":")[0] in last for v in values)
    assert named or not values, (words, last)


USELESS = (
  ("fluid.evaluate --workdir=w --quick", "quick protocol"),
  ("fluid.evaluate --workdir=w --by=fid", "by sweep"),
  ("fluid.evaluate --workdir=w --images=8 --protocol=toy", "images sweep"),
  ("fluid.evaluate --workdir=w --sweep=guidance=1,2 --weights=raw", "weights sweep"),
  ("fluid.evaluate --workdir=w --sweep=guidance=1,2 --evals=loss", "evals sweep"),
  ("fluid.evaluate --workdir=w --sweep=guidance=1,2 --protocol=toy", "protocol sweep"),
  ("fluid.metrics_of set --metrics=vendi --detections=none", "detections metrics"),
  ("fluid.metrics_of set --statistics=s.npz --detector=shapes", "detector statistics"),
  ("fluid.metrics_of set --detections=d --detector=shapes", "detector detections"),
  ("fluid.metrics_of set --detections=none", "detections layout"),
)


def test_flags_that_would_do_nothing_are_refused(tmp_path):
  folder(tmp_path / "set", noise(2))
  useful = "fluid.evaluate --workdir=w --quick --protocol=toy --weights=raw"
  asked = [shlex.split(command) for command, _ in USELESS] + [useful.split()]
  *refused, (code, said) = ended(asked, tmp_path)
  assert code == 2 and "\nerror: no run in w" in said
  for (command, names), (code, said) in zip(USELESS, refused, strict=True):
    first, other = names.split()
    last = said.strip().splitlines()[-1]
    assert code == 2 and last.startswith(f"error: flag --{first} "), (command, said)
    assert other in last, (command, said)
