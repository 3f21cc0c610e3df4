"""fluid.remote: what lies in a bucket is owned, damaged, compiled, and out of reach."""

import contextlib
import errno
import json
import socket
import sys
import threading
import types

import pytest
from fsspec.exceptions import FSTimeoutError
from fsspec.registry import _registry as known

from fluid import api, config, remote
from fluid.durable import checkpoint, paths, workdir
from fluid.errors import REQUEUE, exit_code
from tests import checkpoint_test, compiled_test, tiny
from tests.buckets import files, free_port

gcsfs = pytest.importorskip("gcsfs")
aiohttp = pytest.importorskip("aiohttp")
auth = pytest.importorskip("google.auth.exceptions")
validate_response = pytest.importorskip("gcsfs.retry").validate_response
pytestmark = pytest.mark.slow


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


def test_what_is_saved_before_a_damaged_step_is_there(bucket):
  """As by a run that is stopped between the good step and the damaged one."""
  url, mesh = "gs://bucket/before", checkpoint_test._mesh(1)
  checkpoint_test._save(url, 2, 4)
  folder = f"{url}/checkpoints/4/params"
  for name in files(folder).find(folder):
    files(folder).pipe_file(name, b"damage")
  assert int(checkpoint_test._restore(url, mesh)[0].step) == 2
  checkpoint_test._save(url, 3)
  assert int(checkpoint_test._restore(url, mesh)[0].step) == 3
  assert remote.names(f"{url}/checkpoints-damaged") == set()


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


def answer(status, text="no"):
  """What gcsfs makes of an answer of the server."""
  return lambda: validate_response(status, json.dumps({"error": {"message": text}}), "")


def asked_for_a_token(error, cause=None):
  """What gcsfs makes of a token that it cannot have."""

  def refresh(request):
    raise error from cause

  def act():
    known = gcsfs.credentials.GoogleCredentials("p", "read_only", "anon")
    known.credentials = types.SimpleNamespace(valid=False, refresh=refresh)
    known.maybe_refresh()

  return act


def raises(error):
  def act():
    raise error

  return act


def disconnected():
  """A server that hangs up."""
  with socket.create_server(("localhost", 0)) as server:
    url = f"http://localhost:{server.getsockname()[1]}"

    def hang_up():
      with contextlib.suppress(OSError):
        while True:
          server.accept()[0].close()

    threading.Thread(target=hang_up, daemon=True).start()
    # The plain one: what gcsfs makes of folders asks Google's own address, and waits.
    away = gcsfs.core.GCSFileSystem(
      endpoint_url=url, token="anon", skip_instance_cache=True
    )
    try:
      away.ls("bucket/run")
    finally:
      server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
  "act, code",
  [
    *((answer(status), REQUEUE) for status in (408, 429, 500, 502, 503)),
    *((answer(status), 2) for status in (401, 403, 409, 412)),
    (answer(400, "invalid name"), 2),
    (disconnected, REQUEUE),
    (raises(TimeoutError()), REQUEUE),
    (raises(FSTimeoutError()), REQUEUE),
    (raises(aiohttp.ClientPayloadError("cut")), REQUEUE),
    (raises(socket.gaierror(socket.EAI_AGAIN, "no name yet")), REQUEUE),
    (raises(auth.TransportError("no route")), REQUEUE),
    (asked_for_a_token(auth.RefreshError("x"), auth.TransportError("gone")), REQUEUE),
    (asked_for_a_token(auth.RefreshError("503", retryable=True)), REQUEUE),
    (asked_for_a_token(auth.RefreshError("invalid_grant")), 2),
    (raises(auth.DefaultCredentialsError("none")), 2),
    (raises(OSError(errno.ENOSPC, "full")), REQUEUE),  # This host's disk.
    (raises(OSError(errno.EROFS, "read-only")), 2),
  ],
)
def test_a_network_that_is_away_is_no_refusal(act, code, monkeypatch):
  # Else it waits for half a minute before it gives up.
  monkeypatch.setattr(gcsfs.retry, "random", types.SimpleNamespace(random=lambda: -99))
  with pytest.raises(remote.BucketError) as e, remote.asking("gs://bucket/run"):
    act()
  assert exit_code(e.value) == code, repr(e.value.__cause__)


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
