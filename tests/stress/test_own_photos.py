"""README's way from own photos to boxes, with fewer photos."""

import json
import os

from paligemma.data import image_files
from tests.stress import own_photos


def test_from_an_export_to_boxes_on_a_new_photo(tmp_path, capfd, monkeypatch):
  # One device, as a user has: with several nothing comes from the cache.
  flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=1"
  monkeypatch.setenv("XLA_FLAGS", flags)
  score = own_photos.run(6, tmp_path)
  assert 0 <= score <= 1
  answer = json.loads((tmp_path / "runs/new.jsonl").read_text())
  assert answer["prefix"] == "detect digits"
  drawn = image_files.decode(tmp_path / "runs/new/new.jpg")
  # Upright, though the file is stored turned.
  assert drawn.shape == image_files.decode(tmp_path / "new.jpg").shape
  assert drawn.shape[:2] == (answer["height"], answer["width"])
  assert "keeps the weights with the highest val/AP50" in capfd.readouterr().out
