"""Measures what the project claims; every figure of the README comes from here.

    python -m scripts.benchmark {train,decode,data,load} [--json]
    python -m scripts.benchmark train --dtype float32 --peer transformers
    python -m scripts.benchmark decode --config FILE:ARGUMENT --growth

Each figure is the median of runs after one to warm up, beside the smallest and
the largest. With --json the last line is one object. Weights and pixels are
random. Without --config the model is the bench shape (subject.py), small enough
for two cores and with PaliGemma's vocabulary.

train: examples per second of the trainer's own step. Frozen parameters and
products are in --dtype, what trains in float32. `loss_difference` is the
largest, over the first three steps, to a step in the plain form.
decode: tokens per second of greedy decoding from a prompt of 16 tokens and an
image, both read within the time measured, to 32 tokens a row.
data: images per second of one core from JPEG, 640x480, to a row of a batch;
with --workers N also those of 1 and N worker processes, on a quiet machine.
load: seconds and peak host memory of paligemma.load for a full-size checkpoint
with random weights, which is written first (5.5 GiB for PaliGemma 3B) and kept
in --folder. Each run is a process of its own, and the one that warms up fills
the cache of the file system.

--peer transformers runs transformers' PaliGemma with the same weights and batch
in the same process, in turns with ours, in float32 and in bfloat16;
`ratio_to_best` is our median over its better one, `floor_to_best` what no
program passes that does the FLOPs below. It needs the extra [parity].
--growth adds how the cost grows: memory with the batch and time with the
resolution (train), time per token with their number (decode).

The floor beside a figure is what the machine allows. train and decode: each
phase (the step; the prefill and every token) takes at least its FLOPs over the
rate of a large matrix product and its bytes over the bandwidth of reading,
both measured here, whichever is longer. Bytes are those of the parameters: a
step of training reads each twice, and what trains is updated, two times more;
decoding reads each once a phase. data: Pillow decoding the same JPEG alone.
load: the time to copy as many bytes in memory, and the bytes of the arrays.

On Linux, train and decode start again with GLIBC_TUNABLES=
glibc.malloc.hugetlb=1, as scripts/demo.sh does, for both sides: without it a
step takes up to twice as long. data runs with one thread.
"""

import json
import os
import sys

from paligemma import io, quantization
from scripts.benchmarks import data, decode, load, report, subject, train
from trainers import command_line

# What has to be in the environment before a process starts.
_HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
_ENVIRONMENT = {
  "train": _HUGE_PAGES,
  "decode": _HUGE_PAGES,
  "data": {"OPENBLAS_NUM_THREADS": "1"},
}


def main() -> None:
  args = vars(_parser().parse_args())
  what, as_json = args.pop("what"), args.pop("json")
  if what == "load":
    result = load.measure(**args)
    said = load.describe(result)
  else:
    config = subject.read_config(args.pop("config"), args.pop("dtype"))
    if "peer" in args:
      args["peer"] = args["peer"] and _import_peer()
    measure = {"train": train, "decode": decode, "data": data}[what].measure
    result = measure(config, **args)
    said = report.describe(result)
  print(json.dumps(result) if as_json else said)


def _parser():
  parser = command_line.parser(__doc__)
  commands = parser.add_subparsers(dest="what", required=True)
  loads = commands.add_parser("load")
  loads.add_argument("--folder", default="runs/benchmark")
  loads.add_argument("--format", default="npz", choices=io.WRITERS)
  loads.add_argument("--variant", default="paligemma_3b")
  loads.add_argument("--res", type=int, default=224)
  loads.add_argument("--dtype", default="bfloat16", help="of the files")
  loads.add_argument("--load_dtype", help="cast while loading")
  loads.add_argument(
    "--quantize", choices=quantization.KINDS, help="round while loading"
  )
  loads.add_argument("--runs", type=int, default=3)
  loads.add_argument("--json", action="store_true")
  for what in ("train", "decode", "data"):
    command = commands.add_parser(what)
    command.add_argument("--config", metavar="FILE:ARGUMENT")
    command.add_argument("--runs", type=int, default=5)
    command.add_argument("--json", action="store_true")
    if what == "data":
      command.set_defaults(dtype="float32")
      command.add_argument(
        "--workers", type=int, help="1 and so many worker processes, in turn"
      )
      continue
    command.add_argument(
      "--dtype", default="bfloat16", choices=("bfloat16", "float32")
    )
    command.add_argument("--peer", choices=("transformers",))
    command.add_argument("--growth", action="store_true")
    if what == "train":
      command.add_argument("--steps", type=int, default=1, help="of each run")
  return parser


def _import_peer():
  try:
    from scripts.benchmarks import peer
  except ImportError as error:
    raise ValueError(
      f"--peer transformers: {error}; pip install -e '.[parity]'"
    ) from None
  return peer


def _start_again_with(environment):
  """Restarts this process with an environment, unless it has it already."""
  missing = environment.keys() - os.environ.keys()
  if missing and sys.platform == "linux":
    os.environ.update(environment)
    arguments = ["-m", "scripts.benchmark", *sys.argv[1:]]
    os.execv(sys.executable, [sys.executable, *arguments])


if __name__ == "__main__":
  _start_again_with(_ENVIRONMENT.get("".join(sys.argv[1:2]), {}))
  command_line.run(main)
