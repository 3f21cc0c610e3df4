"""Files are replaced whole, whatever happens on the way."""

import json
import os

import pytest

from fluid import files
from fluid.errors import ConfigError


def test_a_file_is_replaced_whole(tmp_path):
  path = tmp_path / "a" / "b.json"
  for value in ({"x": "é"}, [2]):
    files.write_json(path, value)
    assert json.loads(path.read_text("utf-8")) == value
  files.write_text(path, "é")
  assert path.read_bytes() == "é".encode()
  assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
@pytest.mark.parametrize("written", ["", "half"])
def test_a_failure_in_the_middle_leaves_what_was_there(tmp_path, error, written):
  path = tmp_path / "file"
  files.write_bytes(path, b"old")
  with pytest.raises(type(error)), files.replacing(path) as scratch:
    if written:
      scratch.write_text(written)
      assert scratch.parent == tmp_path
    raise error
  assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_removed(tmp_path):
  with files.replacing(tmp_path / "a") as now, files.replacing(tmp_path / "b") as left:
    now.write_text("a")
    left.write_text("b")
    os.utime(left, (0, 0))
    files.remove_scratch(tmp_path)
    assert now.exists() and not left.exists()
    left.write_text("b")
  assert {p.name for p in tmp_path.iterdir()} == {"a", "b"}


def test_what_cannot_take_the_name_leaves_no_scratch(tmp_path):
  (tmp_path / "file").mkdir()
  with pytest.raises(OSError, match="file"):
    files.write_bytes(tmp_path / "file", b"new")
  assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_hosts_whose_processes_have_one_number_do_not_meet(tmp_path):
  """Containers of many hosts start alike, and write to one folder."""
  with files.replacing(tmp_path / "file") as ours:
    ours.write_text("whole")
    with files.replacing(tmp_path / "file") as theirs:
      theirs.write_text("half")
    assert (tmp_path / "file").read_text() == "half"
  assert (tmp_path / "file").read_text() == "whole"
  assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_is_no_folder_is_refused(tmp_path):
  (file := tmp_path / "file").write_text("x")
  for path, said in (
    ("", "is empty"),
    ("gs:/bucket/run", "only gs://BUCKET/FOLDER is"),
    ("s3://bucket/run", "only gs://BUCKET/FOLDER is"),
    (file, "is a file: name a folder"),
  ):
    with pytest.raises(ConfigError, match=f"^--workdir .*{said}"):
      files.place(path, "--workdir")
  assert files.place(tmp_path / "a:b", "--workdir") == tmp_path / "a:b"
