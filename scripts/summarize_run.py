"""Prints what a fine-tuning run changed, and its scores before and after.

    python -m scripts.summarize_run runs/digits val/exact_match

The last line reads "demo: exact_match before=0.41 after=0.95 n=500".
"""

import pathlib
import sys
from collections.abc import Iterable, Sequence

import numpy as np

from paligemma import tree
from paligemma.checkpoints import npz
from trainers import command_line, report, workdir


def changed_leaves(
  before: str | pathlib.Path, after: str | pathlib.Path
) -> tuple[list[str], int]:
  """Names of the parameters that differ between two npz files, and how many
  there are; one that is only stored in a smaller dtype does not differ.

  Raises:
    ValueError: the files hold other names or shapes.
  """
  old, new = npz.load(before), npz.open(after).leaves
  changed = []
  if differences := tree.compare(old, new):
    raise ValueError(f"{after}: differs from {before}: {differences[0]}")
  for name, leaf in new.items():
    if not np.array_equal(old[name].astype(leaf.dtype), leaf.read()):
      changed.append(name)
  return sorted(changed), len(old)


def check_changed(
  changed: Iterable[str], names: Iterable[str], patterns: Sequence[str]
) -> None:
  """Checks that of all names exactly those that were to train have changed.

  Raises:
    ValueError: a frozen parameter moved, or one that trains did not.
  """
  trains = {n for n, hit in tree.match_any(patterns, names).items() if hit}
  if wrong := sorted(trains ^ set(changed)):
    state = "did not change" if wrong[0] in trains else "changed"
    raise ValueError(f"{wrong[0]} {state}, trainable is {', '.join(patterns)}")


def scores(metrics: pathlib.Path, name: str) -> tuple[float, float, int]:
  """First and last value of "val/exact_match" in metrics.jsonl, and examples.

  A damaged line is left out, and reported on stderr.

  Raises:
    ValueError: the metric is not there.
  """
  lines, damaged = report.read(metrics)
  if damaged:
    print(damaged, file=sys.stderr)
  count = f"{name.partition('/')[0]}/num_examples"
  found = [
    values
    for _, values in lines
    if all(isinstance(values.get(x), int | float) for x in (name, count))
  ]
  if not found:
    raise ValueError(f"{metrics}: holds no {name}")
  return found[0][name], found[-1][name], int(found[-1][count])


def main() -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument("run", type=pathlib.Path, help="folder of the run")
  parser.add_argument("scores", nargs="+", help="such as val/exact_match")
  options = parser.parse_args()
  run = options.run
  config = workdir.read(run / "config.json")
  if config is None or not {"init", "trainable"} <= config.keys():
    raise ValueError(f"{run}: has no config.json of a run with init, trainable")
  final = run / "final.npz"
  changed, total = changed_leaves(config["init"], final)
  check_changed(changed, npz.open(final).leaves, config["trainable"])
  print(f"changed {len(changed)} of {total} parameters: {', '.join(changed)}")
  for name in options.scores:
    before, after, count = scores(run / "metrics.jsonl", name)
    score = name.rpartition("/")[2]
    print(f"demo: {score} before={before:.3f} after={after:.3f} n={count}")


if __name__ == "__main__":
  command_line.run(main)
