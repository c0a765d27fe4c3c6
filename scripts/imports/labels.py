"""Names of labels: those that differ in their spaces alone are one."""

import re
from collections.abc import Mapping
from typing import Any

from scripts.imports import entries


def clean(name: str) -> str:
  """The name with single spaces, and none at its ends."""
  return re.sub(r"[ \t\xa0]+", " ", name).strip()


def named(
  names: Mapping[Any, str], where: str, problems: entries.Problems
) -> dict[Any, str]:
  """The labels of classes; several of one name are noted.

  Args:
    names: class -> name as a file has it.
    where: the place of the names.
    problems: entries.Problems.
  """
  found = {key: clean(name) for key, name in names.items()}
  for _ in range(len(found) - len(set(found.values()))):
    problems.note("classes with the name of another, read as one", where)
  return found
