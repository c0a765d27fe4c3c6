"""Writes the address of the repository, `url` in setup.py, where it is needed.

    python -m scripts.link_notebooks

That is in the notebooks of configs, which fetch the project from there, and in
the badges that open them in Colab. A fork changes setup.py and runs this.
"""

import pathlib
import re

from trainers import command_line

ROOT = pathlib.Path(__file__).parents[1]
HOLDERS = ("configs/*.ipynb", "docs/notebooks.md")
_URL = re.compile(r'^  url="https://github\.com/([\w.-]+/[\w.-]+)",$', re.M)
_NAMED = re.compile(
  r'((?:REPOSITORY = \\"https://github\.com|colab\.research\.google\.com/github)'
  r"/)[\w.-]+/[\w.-]+"
)


def link_notebooks(root: pathlib.Path) -> list[pathlib.Path]:
  """Writes the address of setup.py into the files; returns those changed.

  Raises:
    ValueError: setup.py has no address of a repository at GitHub.
  """
  found = _URL.search((root / "setup.py").read_text())
  if found is None:
    raise ValueError(
      f'{root / "setup.py"}: no line url="https://github.com/OWNER/REPOSITORY",'
    )
  changed = []
  for path in sorted(path for name in HOLDERS for path in root.glob(name)):
    text = path.read_text()
    linked = _NAMED.sub(rf"\g<1>{found[1]}", text)
    if linked != text:
      path.write_text(linked)
      changed.append(path)
  return changed


def main() -> None:
  command_line.parser(__doc__).parse_args()
  for path in link_notebooks(ROOT):
    print(f"wrote {path}")


if __name__ == "__main__":
  command_line.run(main)
