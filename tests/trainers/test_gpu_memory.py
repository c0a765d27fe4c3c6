"""What is told to JAX, and what the user told it stays."""

import os

from trainers import gpu_memory

NAME = "XLA_PYTHON_CLIENT_MEM_FRACTION"


def test_nearly_all_memory_unless_the_user_says_how_much(monkeypatch):
  monkeypatch.delenv(NAME, raising=False)
  gpu_memory.configure()
  assert os.environ[NAME] == "0.97"
  monkeypatch.setenv(NAME, "0.4")
  gpu_memory.configure()
  assert os.environ[NAME] == "0.4"
