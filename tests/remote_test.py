"""Work folders in a bucket, by the protocol of Google Cloud Storage on this machine.

Skipped where gcsfs or gcp-storage-emulator is not installed.
"""

import contextlib
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import types
import urllib.parse

import jax
import numpy as np
import pytest
from fsspec.registry import _registry as known

import analysis
from fluid import api, config, evaluate, remote, train
from fluid.durable import checkpoint, paths, workdir
from fluid.errors import REQUEUE, exit_code
from fluid.training import clocks
from tests import checkpoint_test, compiled_test, tiny
from tests.conftest import ROOT

gcsfs = pytest.importorskip("gcsfs")
emulator = pytest.importorskip("gcp_storage_emulator.server")
exceptions = pytest.importorskip("gcp_storage_emulator.exceptions")
pytestmark = pytest.mark.slow

# Ends like a lost machine once the fifth step is there; that of step 3 is saved.
KILLED = """
import json, os, signal, sys
from fluid import config, train
from fluid.durable import checkpoint
from fluid.training import log

def step(self, number, values, do=log.Log.step):
  do(self, number, values)
  if number == 5:
    saved.wait()
    os.kill(os.getpid(), signal.SIGKILL)

def init(self, *args, do=checkpoint.Checkpoints.__init__, **kwargs):
  global saved
  saved = self
  do(self, *args, **kwargs)

log.Log.step, checkpoint.Checkpoints.__init__ = step, init
train.run(config.from_config_dict(json.loads(sys.argv[1])), sys.argv[2])
"""


def free_port():
  with socket.socket() as s:
    s.bind(("localhost", 0))
    return s.getsockname()[1]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
  """gs://bucket; `fail(n)` answers every n-th request with 503 from then on."""
  port, said = free_port(), {"every": 0, "asked": 0, "failed": 0}
  handle, alone = emulator.Router.handle, threading.Lock()

  class Server(http.server.ThreadingHTTPServer):
    # The emulator's own takes one connection at a time and lets five more wait.
    request_queue_size = 256

  def failing(self, method):
    with alone:
      answer(self, method)

  def answer(self, method):
    request = self._request_handler
    said["asked"] += 1
    if said["every"] and not said["asked"] % said["every"]:
      said["failed"] += 1
      return refuse(request, 503)
    # What TensorStore asks of Google's server and the emulator does not do.
    url = urllib.parse.urlsplit(request.path)
    query = urllib.parse.parse_qs(url.query)
    found = re.search("/b/([^/]+)/o/?(.*)", url.path)
    there, name = found.groups() if found else ("", "")
    name, now = urllib.parse.unquote(name) or query.get("name", [""])[0], "0"
    with contextlib.suppress(exceptions.NotFound):
      now = request.storage.get_file_obj(there, name)["generation"]
    if query.get("ifGenerationMatch", [now])[0] != now:
      return refuse(request, 412)
    if now != "0" and query.get("ifGenerationNotMatch", [""])[0] == now:
      return refuse(request, 304)
    if "media" in query.get("alt", []) and now != "0":
      end = request.end_headers
      request.end_headers = lambda: (
        request.send_header("x-goog-generation", now), end()
      )  # fmt: skip
    return handle(self, method)

  def refuse(request, code):
    request.rfile.read(int(request.headers.get("Content-Length") or 0))
    request.send_response(code)
    request.send_header("Content-Length", "0")
    request.end_headers()
    request.close_connection = True

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(emulator.Router, "handle", failing)
    patch.setattr(emulator.server, "HTTPServer", Server)
    for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
      patch.setenv(name, f"http://localhost:{port}")
    patch.setenv("FLUID_CACHE", str(tmp_path_factory.mktemp("copies")))
    server = emulator.create_server("localhost", port, True, default_bucket="bucket")
    server.start()
    yield said
    server.stop()


def files(url):
  return remote.opened(url)[0]


def lines(text):
  """Lines of metrics.jsonl without what a clock makes."""
  rows = map(json.loads, text.splitlines())
  return [{k: v for k, v in row.items() if not clocks.made(k)} for row in rows]


def test_a_run_killed_in_a_bucket_becomes_what_it_would_have_been(
  bucket, tmp_path, monkeypatch
):
  cfg = tiny.with_cache(tiny.run(), tiny.cache(tmp_path / "cache"))
  train.run(cfg, tmp_path / "run")
  url, cache = "gs://bucket/study/run", "gs://bucket/caches/tiny"
  files(url).put(cfg.data.cache, cache, recursive=True)
  there = tiny.with_cache(cfg, cache)
  argv = [sys.executable, "-c", KILLED, json.dumps(config.to_dict(there)), url]
  env = os.environ | {"JAX_NUM_CPU_DEVICES": "8"}
  done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True)
  assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
  assert json.loads(remote.read_bytes(f"{url}/saved.json")) == {"step": 3}
  assert remote.read_bytes(f"{url}/done.json") is None
  bucket["every"] = 7
  try:
    train.run(there, url)
  finally:
    bucket["every"] = 0
  assert bucket["failed"] > 3
  local = (tmp_path / "run/metrics.jsonl").read_text()
  text = remote.read_bytes(f"{url}/metrics.jsonl").decode()
  assert lines(text) == lines(local)
  told = json.loads(remote.read_bytes(f"{url}/config.json"))
  assert told["data"]["cache"] == cache
  for a, b in zip(
    *map(
      jax.tree.leaves, [checkpoint.restore_params(x) for x in (url, tmp_path / "run")]
    )
  ):
    np.testing.assert_array_equal(a, b)
  assert len(os.listdir(os.environ["FLUID_CACHE"])) == 2  # A copy and its lock.

  tokenizer = types.SimpleNamespace(spec=tiny.SPECS["categorical"])
  vocabulary = types.SimpleNamespace(size=tiny.WORDS)
  monkeypatch.setattr(api.tokenizers, "load", lambda *args: tokenizer)
  monkeypatch.setattr(api.text, "load", lambda *args: vocabulary)
  found = evaluate.evaluate(url, names=["loss"])
  assert found == evaluate.evaluate(tmp_path / "run", names=["loss"])
  assert remote.read_bytes(f"{url}/eval/6-ema-loss.json")
  rows = [analysis.load(str(x)) for x in (url, tmp_path / "run")]
  assert rows[0]["val/loss"].item() == rows[1]["val/loss"].item() == found["val/loss"]


def test_a_damaged_step_is_named_and_replaced(bucket, capsys):
  url, mesh = "gs://bucket/damaged", checkpoint_test._mesh(1)
  checkpoint_test._save(url, 1, 2)
  folder = f"{url}/checkpoints/2/params"
  for name in files(folder).find(folder):
    files(folder).pipe_file(name, b"damage")
  for _ in range(2):  # The second time it is passed over.
    assert int(checkpoint_test._restore(url, mesh)[0].step) == 1
  assert "checkpoint of step 2 cannot be read" in capsys.readouterr().err
  assert checkpoint.restore_params(url)[1] == 1
  checkpoint_test._save(url, 2)
  assert int(checkpoint_test._restore(url, mesh)[0].step) == 2
  assert remote.read_bytes(f"{url}/checkpoints-damaged/2.json") is None


def test_who_starts_last_has_the_folder(bucket):
  cfg, url = tiny.run(), "gs://bucket/owned"
  old, new = workdir.Workdir(url), workdir.Workdir(url)
  with old, new:
    old.claim(cfg)
    (old.path / "a.json").write_text("1")
    old.push()
    new.claim(cfg)
    (old.path / "a.json").write_text("22")
    with pytest.raises(workdir.GoneError, match="another start has taken it"):
      old.push()
    new.tend()
  assert remote.read_bytes(f"{url}/a.json") == b"1"


def test_what_cannot_be_reached_is_one_line(bucket, monkeypatch):
  with pytest.raises(config.ConfigError, match="^--workdir is s3://b/x: of addresses"):
    remote.check("s3://b/x", "--workdir")
  with workdir.Workdir("gs://nobucket/run") as folder:
    with pytest.raises(remote.BucketError, match="see that the bucket is there") as e:
      folder.claim(tiny.run())
  assert exit_code(e.value) == 2 and "\n" not in str(e.value)
  with pytest.raises(config.ConfigError, match="^no run in gs://nobucket/run"):
    api.read_config("gs://nobucket/run")
  with pytest.raises(config.ConfigError, match="^nothing is at gs://bucket/none"):
    paths.near(tiny.with_cache(tiny.run(), "gs://bucket/none"))
  away = gcsfs.GCSFileSystem(
    endpoint_url=f"http://localhost:{free_port()}", skip_instance_cache=True
  )
  monkeypatch.setattr(remote, "opened", lambda url: (away, "bucket/run"))
  with pytest.raises(remote.BucketError, match="gs://bucket/run cannot be") as e:
    remote.local("gs://bucket/run")
  assert exit_code(e.value) == REQUEUE


def test_what_was_compiled_is_kept_in_the_bucket(bucket, uncached):
  url = "gs://bucket/compiled"
  found = lambda: files(url).find(url)
  hits = compiled_test.hits(url, found)
  assert hits == [0, 1] and "/compiled/cache/cpu-" in found()[0]


def test_a_package_that_is_missing_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "gcsfs", None)
  monkeypatch.delitem(known, "gs", raising=False)
  with pytest.raises(config.ConfigError, match="needs the package gcsfs"):
    remote.check("gs://other/run", "--workdir")
