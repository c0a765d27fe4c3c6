"""Prints what a fine-tuning run changed, and its scores before and after.

    python -m scripts.summarize_run runs/digits val/exact_match

The last line reads "demo: exact_match before=0.41 after=0.95 n=500".
"""

import argparse
import json
import pathlib

import numpy as np

from paligemma import tree
from paligemma.checkpoints import npz
from trainers import command_line


def changed_leaves(before, after):
  """Names of the parameters that differ between two npz files.

  A weight that was only stored in a smaller dtype counts as unchanged.

  Args:
    before, after: paths of npz files.

  Returns:
    Tuple of the sorted list of names and the number of all parameters.

  Raises:
    ValueError: the files hold other names or shapes.
  """
  old = npz.load(before)
  changed = []
  if differences := tree.compare(npz.shapes(before), npz.shapes(after)):
    raise ValueError(f"{after}: differs from {before}: {differences[0]}")
  for name, array in npz.iterate(after):
    if not np.array_equal(old[name].astype(array.dtype), array):
      changed.append(name)
  return sorted(changed), len(old)


def check_changed(changed, names, patterns):
  """Checks that exactly the parameters that were to train have changed.

  Args:
    changed: names of the parameters that differ.
    names: all names.
    patterns: regexes of the names that were to train.

  Raises:
    ValueError: a frozen parameter moved, or one that trains did not.
  """
  trains = {n for n, hit in tree.match_any(patterns, names).items() if hit}
  if wrong := sorted(trains ^ set(changed)):
    state = "did not change" if wrong[0] in trains else "changed"
    raise ValueError(f"{wrong[0]} {state}, trainable is {', '.join(patterns)}")


def scores(metrics, name):
  """The first and last value of a metric in metrics.jsonl, and its examples.

  Args:
    metrics: path of metrics.jsonl.
    name: "val/exact_match".

  Returns:
    Tuple (first, last, number of examples).

  Raises:
    ValueError: the metric is not there.
  """
  lines = [json.loads(line) for line in metrics.read_text().splitlines()]
  found = [line for line in lines if name in line]
  if not found:
    raise ValueError(f"{metrics}: holds no {name}")
  count = int(found[-1][f"{name.partition('/')[0]}/num_examples"])
  return found[0][name], found[-1][name], count


def main():
  """Parses the command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("run", type=pathlib.Path, help="folder of the run")
  parser.add_argument("scores", nargs="+", help="such as val/exact_match")
  options = parser.parse_args()
  run = options.run
  config = json.loads((run / "config.json").read_text())
  final = run / "final.npz"
  changed, total = changed_leaves(config["init"], final)
  check_changed(changed, npz.shapes(final), config["trainable"])
  print(f"changed {len(changed)} of {total} parameters: {', '.join(changed)}")
  for name in options.scores:
    before, after, count = scores(run / "metrics.jsonl", name)
    score = name.rpartition("/")[2]
    print(f"demo: {score} before={before:.3f} after={after:.3f} n={count}")


if __name__ == "__main__":
  command_line.run(main)
