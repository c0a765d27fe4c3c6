"""A signal ends what has nothing to save at once, and else is asked for."""

import signal
import subprocess
import sys

import pytest

SCRIPT = """
import sys, time
from trainers import preemption
notice = preemption.Preemption()
if sys.argv[1] == "held":
  notice.hold()
print("ready", flush=True)
while not notice.requested(3):
  time.sleep(0.01)
print("asked", flush=True)
if sys.argv[2:] == ["leave"]:
  notice.close()
  sys.exit()
time.sleep(600)
"""


@pytest.fixture
def start():
  started = []

  def start(*arguments):
    process = subprocess.Popen(
      [sys.executable, "-c", SCRIPT, *arguments],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    started.append(process)
    assert process.stdout.readline() == "ready\n"
    return process

  yield start
  for process in started:
    process.kill()
    process.communicate()


SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


@SIGNALS
def test_before_there_is_something_to_save_it_ends_at_once(start, number):
  process = start("loading")
  process.send_signal(number)
  _, said = process.communicate(timeout=60)
  assert process.returncode == 128 + number
  assert said == "stopped before a step: there is nothing new to save\n"


@SIGNALS
def test_then_it_is_asked_for(start, number):
  process = start("held", "leave")
  process.send_signal(number)
  _, said = process.communicate(timeout=60)
  assert process.returncode == 0
  assert said.startswith("asked to stop: saves and ends in a moment; once more")


@SIGNALS
def test_a_second_one_ends_it_at_once(start, number):
  process = start("held")
  process.send_signal(number)
  assert process.stdout.readline() == "asked\n"
  process.send_signal(number)
  _, said = process.communicate(timeout=60)
  assert process.returncode == 128 + number
  assert said.splitlines()[-1] == (
    "stopped at once; start again to resume the last checkpoint"
  )
