"""Writes docs/config_keys.md: every key of a config, from configs/common.py.

python -m scripts.list_config_keys
"""

import pathlib

from configs import common
from trainers import command_line

OUT = pathlib.Path(__file__).parents[1] / "docs/config_keys.md"

HEAD = """\
# Every key of a config

For anyone who writes a config: names, types, defaults and meanings. Written by
`python -m scripts.list_config_keys`; change
[configs/common.py](../configs/common.py) and run it again.

A config sets what it changes. On the command line a value is set by
`--config.name=value`, such as `--config.train.on_bad=skip` or
`--config.evals.val.limit=100`. `*` stands for a name of your own. A duration is
set in one unit: on the command line, in place of what the config says.

"""


def table() -> str:
  """The keys as a table in Markdown, in the order of configs/common.py."""
  rows = [("key", "type", "default", "meaning"), ("---",) * 4]
  for key in common.KEYS:
    kinds = f" ({', '.join(key.kinds)})" if key.kinds else ""
    unit = f" [{key.unit}]" if key.unit else ""
    kind = "any" if key.type is object else key.type.__name__
    default = f"`{key.default!r}`"
    if key.default is common.REQUIRED:
      default = "required"
    elif key.name.endswith("*"):
      default = ""
    meaning = f"{key.meaning}{unit}"
    rows.append((f"`{key.name}`{kinds}", kind, default, meaning))
  return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main() -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument("--out", default=OUT, type=pathlib.Path)
  args = parser.parse_args()
  args.out.write_text(HEAD + table(), encoding="utf-8")
  print(f"wrote {args.out}")


if __name__ == "__main__":
  command_line.run(main)
