"""A bucket by the protocol of Google Cloud Storage on this machine.

What imports this is skipped where gcsfs or gcp-storage-emulator is not installed.
"""

import contextlib
import http.server
import re
import socket
import threading
import urllib.parse

import pytest

from fluid import remote

pytest.importorskip("gcsfs")
emulator = pytest.importorskip("gcp_storage_emulator.server")
exceptions = pytest.importorskip("gcp_storage_emulator.exceptions")


def free_port():
  with socket.socket() as s:
    s.bind(("localhost", 0))
    return s.getsockname()[1]


@contextlib.contextmanager
def served(copies):
  """gs://bucket; each time that `asked` divides by `every` the answer is 503."""
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
    patch.setenv("FLUID_CACHE", str(copies))
    server = emulator.create_server("localhost", port, True, default_bucket="bucket")
    server.start()
    yield said
    server.stop()


def files(url):
  return remote.opened(url)[0]
