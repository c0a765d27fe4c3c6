"""Files and folders are there as a whole or not at all."""

import errno
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

import paligemma
from paligemma import disk

WAYS = ("file", "folder")


def write(way, path, text):
  """Writes `text` in either way, and fails if it says so."""
  with getattr(disk, way)(path) as beside:
    (beside / "x" if way == "folder" else beside).write_text(text)
    assert not path.exists()
    if text == "fail":
      raise KeyError


def read(way, path):
  return (path / "x" if way == "folder" else path).read_text()


def test_assets_are_those_of_the_package_unless_they_are_here(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  package = pathlib.Path(paligemma.__file__).parent
  name = "paligemma/assets/tiny.npz"
  assert disk.path(name) == package / "assets/tiny.npz"
  for other in ("paligemma/assets/no.npz", "paligemma/disk.py", "tiny.npz"):
    assert str(disk.path(other)) == other
  here = tmp_path / name
  here.parent.mkdir(parents=True)
  here.write_text("mine")
  assert disk.path(name).read_text() == "mine"


@pytest.mark.parametrize("way", WAYS)
def test_appears_when_it_is_complete(way, tmp_path):
  write(way, tmp_path / "a" / "b", "1")
  assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]
  assert read(way, tmp_path / "a" / "b") == "1"


@pytest.mark.parametrize("way", WAYS)
def test_an_error_leaves_nothing(way, tmp_path):
  with pytest.raises(KeyError):
    write(way, tmp_path / "b", "fail")
  assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_at_the_end(tmp_path):
  path = tmp_path / "b"
  path.write_text("old")
  with pytest.raises(KeyError), disk.file(path) as beside:
    beside.write_text("new")
    raise KeyError
  assert path.read_text() == "old"
  disk.write(path, "new ☃")
  assert path.read_bytes() == "new ☃".encode()


@pytest.mark.parametrize("way", WAYS)
def test_the_next_writer_clears_what_a_killed_one_left(way, tmp_path):
  script = f"""
import sys, time
from paligemma import disk
with disk.{way}(sys.argv[1]) as beside:
  (beside / "x" if {way == "folder"} else beside).write_text("half")
  print("begun", flush=True)
  time.sleep(600)
"""
  command = [sys.executable, "-c", script, str(tmp_path / "b")]
  with subprocess.Popen(command, stdout=subprocess.PIPE) as killed:
    assert killed.stdout.readline() == b"begun\n"
    (left,) = tmp_path.iterdir()
    write(way, tmp_path / "c", "1")  # another one's is not touched
    assert left.exists()
    disk.clear(tmp_path / "b")  # nor is that of a writer that lives
    assert left.exists()
    killed.send_signal(signal.SIGKILL)
  write(way, tmp_path / "b", "2")
  assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "c"]
  assert read(way, tmp_path / "b") == "2"


def test_what_another_host_writes_is_left_until_it_is_old(tmp_path):
  other = tmp_path / ".b.other.example.7.tmp"
  other.write_text("half")
  foreign = tmp_path / ".b.tmp"  # not one of ours
  foreign.write_text("mine")
  disk.write(tmp_path / "b", "1")
  assert other.exists()
  old = time.time() - 2 * disk.DEAD_AFTER_SECONDS
  os.utime(other, (old, old))
  os.utime(foreign, (old, old))
  disk.write(tmp_path / "b", "2")
  assert not other.exists()
  assert foreign.exists()


def test_our_own_number_of_an_earlier_life_is_not_another_writer(tmp_path):
  left = tmp_path / f".b.{socket.gethostname()}.{os.getpid()}.tmp"
  left.mkdir()
  (left / "old").touch()
  write("folder", tmp_path / "b", "1")
  assert [p.name for p in (tmp_path / "b").iterdir()] == ["x"]


def test_files_are_on_the_disk_before_they_have_their_name(
  tmp_path, monkeypatch
):
  events = []
  fsync, replace = os.fsync, os.replace

  def synced(descriptor):
    events.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return fsync(descriptor)

  def renamed(source, target, **rest):
    events.append("renamed")
    return replace(source, target, **rest)

  monkeypatch.setattr(os, "fsync", synced)
  monkeypatch.setattr(os, "replace", renamed)
  disk.write(tmp_path / "b", "1")
  beside = str(disk.beside(tmp_path / "b"))
  assert events == [beside, "renamed", str(tmp_path)]
  events.clear()
  write("folder", tmp_path / "c", "1")
  beside = str(disk.beside(tmp_path / "c"))
  assert events == [f"{beside}/x", beside, "renamed", str(tmp_path)]


def test_an_error_of_writing_names_the_path(tmp_path):
  path = tmp_path / "b"
  full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  message = f"No space left on device: '{path}'"
  with pytest.raises(OSError, match=message), disk.file(path):
    raise full
  (tmp_path / "file").touch()
  with pytest.raises(OSError, match=f"{tmp_path}/file"):
    disk.write(tmp_path / "file" / "b", "1")
