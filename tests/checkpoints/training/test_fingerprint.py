"""One name for the same contents, another for others, wherever they lie."""

import re

import numpy as np
import pytest

from paligemma.checkpoints import npz
from paligemma.checkpoints.training import fingerprint


@pytest.fixture
def folder(tmp_path):
  path = tmp_path / "model"
  (path / "sub").mkdir(parents=True)
  (path / "config.json").write_text("{}")
  content = np.random.default_rng(0).bytes(3 * 2**20 + 7)
  (path / "sub" / "model.safetensors").write_bytes(content)
  return path


def test_of_an_npz_is_what_it_always_was(tmp_path):
  path = tmp_path / "a.npz"
  npz.save(path, {"img/w": np.ones(3), "llm/w": np.ones(2)})
  assert fingerprint.of(path) == npz.fingerprint(path)
  assert fingerprint.of(f"{path}:img") == npz.fingerprint(f"{path}:img")
  assert fingerprint.of(f"{path}:img") != fingerprint.of(path)


def test_settings_of_an_npz_are_not_its_weights(tmp_path):
  arrays = {"img/w": np.ones(3), "llm/w": np.ones(2)}
  npz.save(tmp_path / "a.npz", arrays, llm={"sliding_window": 3})
  npz.save(tmp_path / "b.npz", arrays, llm={"sliding_window": 5})
  assert (tmp_path / "a.npz").read_bytes() != (tmp_path / "b.npz").read_bytes()
  names = {fingerprint.of(tmp_path / f"{x}.npz") for x in "ab"}
  npz.save(tmp_path / "c.npz", arrays | {"llm/w": np.zeros(2)})
  assert len(names) == 1
  assert fingerprint.of(tmp_path / "c.npz") not in names


def test_of_a_folder_follows_its_contents(folder, tmp_path):
  first = fingerprint.of(folder)
  assert re.fullmatch("sha256:[0-9a-f]{64}", first)
  assert fingerprint.of(f"{folder}/") == first

  moved = folder.rename(tmp_path / "elsewhere")
  (moved / ".cache").mkdir()
  (moved / ".cache" / "date").write_text("today")
  assert fingerprint.of(moved) == first

  (moved / "config.json").write_text("[]")
  assert fingerprint.of(moved) != first
  (moved / "config.json").write_text("{}")
  assert fingerprint.of(moved) == first
  (moved / "config.json").rename(moved / "configs.json")
  assert fingerprint.of(moved) != first


@pytest.mark.parametrize("start", [0, 2**20, 3 * 2**20 - 20_000])
def test_of_a_large_file_sees_what_training_changes(folder, start):
  file = folder / "sub" / "model.safetensors"
  first = fingerprint.of(folder), fingerprint.of(file)
  content = bytearray(file.read_bytes())
  content[start : start + 20_000] = bytes(20_000)
  file.write_bytes(content)
  assert fingerprint.of(folder) != first[0]
  assert fingerprint.of(file) != first[1]
  file.write_bytes(content[:-1])
  assert fingerprint.of(file) != first[1]


def test_nothing_there(tmp_path):
  with pytest.raises(ValueError, match="absent: No such file or directory"):
    fingerprint.of(tmp_path / "absent")
  with pytest.raises(ValueError, match=r"a\.npz: No such file or directory"):
    fingerprint.of(tmp_path / "a.npz")
