"""The committed list of config keys is what the script writes."""

import sys

from configs import common
from scripts import list_config_keys


def test_the_committed_file_is_what_the_script_writes(tmp_path, monkeypatch):
  out = tmp_path / "keys.md"
  monkeypatch.setattr(sys, "argv", ["list_config_keys", "--out", str(out)])
  list_config_keys.main()
  assert out.read_text() == list_config_keys.OUT.read_text(), (
    "run: python -m scripts.list_config_keys"
  )


def test_every_key_has_a_row_of_four_cells():
  _, _, *rows = list_config_keys.table().splitlines()
  assert len(rows) == len(common.KEYS)
  for key, row in zip(common.KEYS, rows, strict=True):
    assert row.startswith(f"| `{key.name}`")
    assert row.count("|") == 5, row
