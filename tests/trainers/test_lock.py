"""One trainer a folder, whoever was killed in it before."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from trainers import lock


@pytest.fixture(autouse=True)
def fast(monkeypatch):
  monkeypatch.setattr(lock, "BEAT", 0.05)
  monkeypatch.setattr(lock, "STILL", 1.0)


def lock_file(folder):
  return folder / "trainer.lock"


def write(folder, **who):
  lock_file(folder).write_text(json.dumps({"id": "other", **who}))


def test_held_and_given_back(tmp_path):
  folder = tmp_path / "new"
  with lock.held(folder) as held:
    held.check()
    found = json.loads(lock_file(folder).read_text())
    assert (found["host"], found["pid"]) == (socket.gethostname(), os.getpid())
  assert list(folder.iterdir()) == []


def test_a_second_trainer_is_refused_while_the_first_lives(tmp_path):
  """On this machine or another: its file beats."""
  script = """
import pathlib, sys, time
from trainers import lock
lock.BEAT = 0.05
with lock.held(pathlib.Path(sys.argv[1])):
  print("held", flush=True)
  time.sleep(600)
"""
  command = [sys.executable, "-c", script, str(tmp_path)]
  with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(ValueError) as caught, lock.held(tmp_path):
      pass
    assert str(caught.value) == (
      f"{tmp_path}: process {other.pid} on {socket.gethostname()} trains here; "
      "wait for its end, stop it, or use another --workdir"
    )
    assert lock_file(tmp_path).exists()
    other.send_signal(signal.SIGKILL)
  with lock.held(tmp_path):  # at once, as its process is gone
    pass


def test_what_a_dead_process_left_is_taken_over_with_a_line(tmp_path, capfd):
  with subprocess.Popen(["true"]) as gone:
    pass
  write(tmp_path, host=socket.gethostname(), pid=gone.pid)
  with lock.held(tmp_path) as held:
    held.check()
  assert capfd.readouterr().err == (
    f"{lock_file(tmp_path)}: taken over from process {gone.pid} on "
    f"{socket.gethostname()}, which is gone\n"
  )


def test_a_process_that_nobody_has_waited_for_is_dead(tmp_path, capfd):
  with subprocess.Popen(["true"]) as zombie:
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    write(tmp_path, host=socket.gethostname(), pid=zombie.pid)
    with lock.held(tmp_path):
      pass
  assert ", which is gone" in capfd.readouterr().err


def test_our_own_number_of_an_earlier_life_is_no_other_trainer(tmp_path, capfd):
  write(tmp_path, host=socket.gethostname(), pid=os.getpid())
  with lock.held(tmp_path):
    pass
  assert "taken over" in capfd.readouterr().err


@pytest.mark.parametrize(
  "content", ['{"id": "1", "host": "other.example", "pid": 7}', "", "[", "[1]"]
)
def test_another_machine_that_gives_no_sign_is_taken_for_dead(
  tmp_path, capfd, content
):
  lock_file(tmp_path).write_text(content)
  start = time.monotonic()
  with lock.held(tmp_path):
    assert time.monotonic() - start > lock.STILL
  waits, taken = capfd.readouterr().err.splitlines()
  assert "waits for a sign of life of process " in waits
  assert taken.endswith(", which gave no sign of life for 1 s")


def test_a_trainer_that_ends_meanwhile_gives_way(tmp_path):
  write(tmp_path, host="other.example", pid=7)
  threading.Timer(0.3, lock_file(tmp_path).unlink).start()
  with lock.held(tmp_path) as held:
    held.check()


def test_who_was_taken_for_dead_ends(tmp_path):
  message = "process 7 on other.example trains here too, as this process gave"
  with lock.held(tmp_path) as held:
    end = time.monotonic() + 60
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
      while time.monotonic() < end:
        write(tmp_path, host="other.example", pid=7)
        held.check()
        time.sleep(0.01)
  assert json.loads(lock_file(tmp_path).read_text())["id"] == "other"


def test_a_file_that_is_lost_is_written_again(tmp_path):
  with lock.held(tmp_path) as held:
    lock_file(tmp_path).unlink()
    end = time.monotonic() + 60
    while not lock_file(tmp_path).exists():
      assert time.monotonic() < end
      time.sleep(0.01)
    held.check()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / "file").touch()
  with (
    pytest.raises(OSError, match="file/run"),
    lock.held(tmp_path / "file/run"),
  ):
    pass
