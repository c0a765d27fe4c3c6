"""Writes one HTML page about a run, or about several side by side.

    python -m scripts.report runs/a runs/b --out report.html

It shows how far each run came, scores with 95% intervals, curves, predictions
over time with their boxes and masks, the worst errors, confusion by label, and
configs with their differences. The page needs no other file. A run may still be
going on, or have been killed: the page says so.
"""

import jax

from trainers import command_line, run_page


def main() -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
  parser.add_argument(
    "--out", metavar="FILE", help="default: report.html in the first run"
  )
  parser.add_argument(
    "--resamples",
    type=int,
    default=run_page.RESAMPLES,
    help="for intervals of scores that are not means, such as AP; 0: none",
  )
  options = parser.parse_args()
  # Masks are decoded; a run that still goes on may hold all of the accelerator.
  jax.config.update("jax_platforms", "cpu")
  path, lines = run_page.write(
    options.runs, options.out, resamples=options.resamples
  )
  print("\n".join([*lines, f"report: {path} written"]))


if __name__ == "__main__":
  command_line.run(main)
