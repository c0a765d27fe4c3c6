"""The command `paligemma`: hands over to the programs of trainers and scripts.

Installed, these are in paligemma/programs, as packages called configs, trainers
and scripts would collide with those of other projects; in a checkout they are
beside paligemma.
"""

import argparse
import pathlib
import runpy
import sys
from collections.abc import Mapping
from types import MappingProxyType

import paligemma
from paligemma import messages, registry

# Command -> module with a function main, and what it does.
COMMANDS: Mapping[str, tuple[str, str]] = MappingProxyType(
  {
    "train": ("trainers.train", "fine-tune, or resume a run"),
    "sweep": ("scripts.sweep", "train once per combination of values"),
    "predict": ("scripts.predict", "ask a checkpoint about images"),
    "serve": ("scripts.serve", "answer over HTTP: OpenAI's API, tasks, a page"),
    "ask": ("scripts.ask", "ask about a picture in a terminal"),
    "evaluate": ("scripts.evaluate", "score a checkpoint as a config says"),
    "score": ("scripts.score", "score predictions again, or compare two files"),
    "report": (
      "scripts.report",
      "show runs on a page: curves, answers, errors",
    ),
    "convert": ("scripts.convert", "write a checkpoint in another format"),
    "export": ("scripts.export", "write StableHLO that runs in JAX alone"),
    "plan": ("scripts.plan", "memory and time of a training, before it starts"),
    "import": ("scripts.import_data", "convert COCO, YOLO, VOC, ... to JSONL"),
    "prepare": (
      "scripts.prepare",
      "a published data set, from its publisher's files to JSONL",
    ),
    "pack": ("scripts.pack", "copy a JSONL and its images into large files"),
    "inspect": ("scripts.inspect_data", "show examples as the model sees them"),
    "fetch": ("scripts.fetch", "download a published checkpoint"),
  }
)
_PACKAGE = pathlib.Path(__file__).parent


def main() -> None:
  """Runs the program that the first argument names, on the other arguments."""
  rows = [(f"  {name}", text) for name, (_, text) in COMMANDS.items()]
  parser = argparse.ArgumentParser(
    prog="paligemma",
    description=paligemma.__doc__,
    epilog="\n".join(["commands:", *messages.aligned(rows)]),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    "--version", action="version", version=paligemma.__version__
  )
  parser.add_argument(
    "command", help="one of those below; COMMAND --help lists its options"
  )
  parser.error = lambda message: sys.exit(
    f"error: {message}; paligemma --help lists the commands"
  )
  command = parser.parse_args(sys.argv[1:2]).command
  try:
    module, _ = registry.lookup(COMMANDS, command, "command")
  except ValueError as error:
    sys.exit(f"error: {error}")
  installed = _PACKAGE / "programs"
  sys.path.insert(0, str(installed if installed.is_dir() else _PACKAGE.parent))
  sys.argv = [f"paligemma {command}", *sys.argv[2:]]
  runpy.run_module(module, run_name="__main__")


if __name__ == "__main__":
  main()
